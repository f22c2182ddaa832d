"""What every part stands on: core counts, units, thread hops. Uses nothing above it."""
