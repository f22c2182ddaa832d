"""Calls on their way to workers and back.

From what users write down to what workers are given; each uses only those below it, or right of it::

    gather, config                gather_parallel and stream_parallel, the pools that belong to loops; parallel_config
    pool, calls, many_calls       Pool and LimitedPool as users see them: fronts that hold a runner
    runner                        one call through a pool, or a gather, or a stream
    singles                       begins single calls
    engine                        a pool but for its front: its settings, its loop, its life
    admitted                      the calls that are still owed an outcome
    futures                       what stands for a single call that is on its way, or is to begin
    stream, flow, progress        the calls of one gather or stream: drawn as workers free up, delivered as they end
    scheduler                     which call goes to which worker, when. It wires these:
    watch, refusing, stopping     calls taken back, refused and stopped
    workforce, delivery, backlog  workers; outcomes, and what calls came to; calls that wait
    failures                      what is said of calls that ended badly
    single_queue, queues          where calls wait, and whose turn it is
    slots, statistics             what a worker has been given; what users are told of a pool
    options, settings, policy     what was asked of a gather, of a pool and of a call that is to stop, checked
    parsing, typed                what a value means that was given; what may be given, as type checkers see it
    batching, expressions         how many calls travel together and are drawn ahead; arithmetic that says how many
    lifetime                      how far the life of a pool has come, and what ties it to its loop
"""
