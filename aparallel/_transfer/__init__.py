"""What both ends of a process worker do to calls, results and errors. A child loads it at start: keep it light."""
