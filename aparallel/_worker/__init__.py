"""A worker process. Nobody imports this package; it is started by name, with the standard library alone."""
