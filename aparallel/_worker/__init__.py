"""A worker process. Nobody imports this package; it is started by path, with the standard library alone.

::

    loop                              runs the calls of frames
    incoming, outgoing                frames on their way in; outcomes on their way out
    memory                            shared memory, loaded when it is first needed
    lifeline, stdio                   the parent's death; what calls print
    logs, log_handler                 log records and warnings, for the parent
"""
