"""What every backend must do, as tests. See ``aparallel.testing``."""
