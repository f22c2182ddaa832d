"""The store on disk.

::

    entries/<xx>/<function>/<key>       an entry; xx, the first two digits of the key, is its slot
    functions/<function>.json           the function's name
    functions/<function>.<code>.json    the digest of each part of its code, for explain()
    tags/<tag>                          changes whenever the tag is invalidated
    removals/all, removals/<xx>         change whenever results are removed by request
    evicted, expired                    the beginnings of the keys that were removed lately, for explain()
    counts, locks                       see slots.py and locks.py
    tmp/<xx>/                           what is being written; in many folders, see spread_over_disk

Every file is written in tmp and renamed into its place, so it is whole or absent. Nothing is mapped but arrays,
no descriptor stays open, and no lock is held while anything is computed but the one of its key: all of it works
on a network file system.

::

    store                             the store
    slots, locks                      entries, slot by slot, with a count and a lock for each
    bounds, eviction, recency         what is too much, which of it goes, and what was used last
    directory, files                  the directory, which must be believed, and single files in it
"""
