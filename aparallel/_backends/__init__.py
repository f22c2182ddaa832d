"""The kinds of workers: processes, threads, the loop itself.

::

    process                           processes: what the workers of one pool have in common
    spare, tending                    the interpreter that stands by; the shared memory for arguments
    process_worker, reading           one worker, as its pool sees it, and what its calls gave
    child, channel, loans             its process, its socket, and the shared memory between it and its pool
    logs, log_threads, log_source     its log records and warnings, noticed, read
    log_records, log_settings         and handled; what it must know for that
    thread, inline                    threads, and the loop itself
"""
