"""Persistence: dump and load without blocking the loop.

For the inside of the house, all that happens to one file happens in one call, in the caller's thread:
``dump.dump_to_path(obj, path, DumpOptions(...))`` and ``load.load_from_path(path, LoadOptions(...))``. Who has hopped
to a thread already, as a cache has, calls these; the public ``dump`` and ``load`` are one hop around them. Both take a
:class:`~aparallel._ground.stoppable.Stop` that ends them between two slices.
``files.replacing(path, durable=...)`` is the atomic write by itself.

What happens to an object, and back::

    dump, load, inspection            the public functions, and what they are for the inside of the house
    opening, options                  what users give them: files, which are opened, and what is to be done
    running                           their thread, and what they tell meanwhile
    pickling, trees, arrays           an object into a pickle and buffers; arrays out of these
    writer, compressors, summing      records, compressed and summed up
    container                         what is where in a file
    files, sinks, sources, pipes      what it is written to and read from
    freeing                           what it takes the place of
    reader, filling, mapping          read and verified, or mapped
    unpickling                        the pickle into the object
    recognizing, joblib_files         what a file is; files of others

What a pickle would do, before it does::

    checking                          whether all of it is trusted, found out in one of three ways:
    tokens, dry_run, walk             by its opcodes alone, by a run with stand-ins, or step by step
    trust, guard, plain_data          what is trusted, and what is held against that
    kept                              what the walk keeps of arguments, and for what comes later in the pickle
    nesting                           how deep things lie in each other, which can crash Python
    dtypes                            its data types of NumPy
    standins, window                  what stands for its objects; its bytes
"""
