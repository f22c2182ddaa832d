"""Persistence: dump and load without blocking the loop.

For the inside of the house, all that happens to one file happens in one call, in the caller's thread:
``dump.dump_to_path(obj, path, DumpOptions(...))`` and ``load.load_from_path(path, LoadOptions(...))``. Who has hopped
to a thread already, as a cache has, calls these; the public ``dump`` and ``load`` are one hop around them. Both take a
:class:`~aparallel._ground.stoppable.Stop` that ends them between two slices.
``files.replacing(path, durable=...)`` is the atomic write by itself.
"""
