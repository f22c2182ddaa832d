"""What both ends of a process worker do to calls, results and errors. A child loads it at start: keep it light.

For both ends::

    failures                          exceptions, described there and raised again here
    pickling                          pickles: by name where that can be imported, else by value
    by_value, by_name, classes        the latter: functions; context variables, annotations and the like; classes
    rebuilding                        functions that came by value
    out_of_band, arrays               which buffers leave a pickle, and how arrays are built around them again
    lending, borrowing                shared memory: written, lent and used again; mapped and given back
    segments, writing                 a piece of it, as its owner has it; how it is written
    shared_memory                     what it is

For the parent alone::

    encoding, holding                 calls are drawn; some wait for a large one of their moment
    packing                           what they carry becomes payloads
    functions, unchanged              the functions of a pool and of an encoder; whether they are what they were
    shipment, arguments               payloads that are large; what there is of arguments in shared memory
    known, contents, pages, users     a buffer that was written; its bytes; whether it was changed since; for whom
    stillness                         whether anything can have changed from one call to the next
    unpickling                        large results, in slices
    diagnosis                         why a call could not be pickled
"""
