"""The kinds of workers: processes, threads, the loop itself."""
