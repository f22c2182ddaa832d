"""What travels between a process worker and its parent. Standard library only: a child loads it at start.

::

    frames, descriptors               what is said over a socket pair, and the file descriptors that go along
    outbox, ring                      the memory beside it: for outcomes, and for large pickles
    records                           log records and warnings, through a pipe
"""
