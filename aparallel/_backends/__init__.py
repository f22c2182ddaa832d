"""The kinds of workers: processes, threads, the loop itself.

::

    process, tending                  processes: what the workers of one pool have in common; their shared memory
    process_worker, reading           one worker, as its pool sees it, and what its calls gave
    child, channel, loans             its process, or the spare one; its socket; the memory that both sides lend
    initializer                       what each runs first, pickled for all of them
    logs, log_threads, log_source     its log records and warnings, noticed, read
    log_records, log_settings         and handled; what it must know for that
    thread, inline                    threads, and the loop itself
"""
