"""Memoization: keys made of content, a store on disk, one computation for all who ask.

From what users hold down to the disk::

    memory, function, results         Memory, the functions that it remembers, and what both tell
    options, pickled                  what may be asked of them; how a memoized function travels
    computation, computing_threads    a result that is not there is computed, and where
    single_flight                     once for all who ask
    lookup, storing                   a result is looked for, and stored; why one is not there
    shelf, tier                       what the functions of one memory share; the newest results in memory
    sealed, entry, values             what is stored: under seal, as bytes, with a small value or a large one
    notes                             what is stored besides
    disk                              a directory as a store
    behind                            work that nobody waits for

Keys, from a call down to its digest::

    keys, fingerprint                 the call's arguments, and what its function depends on
    tracking, callables               that is found by following what its code reads; what is inside a callable
    bytecode, constants               what code reads, and what cannot change in place
    hashing, cycles                   any value as bytes that stand for its content
    apart, arrays, encoding           values taken apart by their types, and put together as bytes
    digest                            BLAKE3
"""
