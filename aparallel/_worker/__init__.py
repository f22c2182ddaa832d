"""A worker process. Nobody imports this package; it is started by path, with the standard library alone."""
