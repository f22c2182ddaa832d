"""A worker process. Nobody imports this package; it is started by path, with the standard library alone.

::

    loop                              runs the calls of frames
    incoming, arrival                 frames on their way in, and the wait for the next one
    outgoing                          outcomes on their way out
    memory                            shared memory, loaded when it is first needed
    lifeline, stdio                   the parent's death; what calls print
    logs, log_handler, portable       log records and warnings, for the parent
"""
