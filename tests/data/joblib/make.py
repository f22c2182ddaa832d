"""Write this folder's files: run once with each joblib, in an environment of its own, also on old Pythons.

``python make.py FOLDER`` writes one archive there with the same object in every way in which this joblib compresses.
"""

import collections
import datetime as dt
import os
import sys
import tempfile
import zipfile

import numpy as np

WAYS = {
    "plain": 0,
    "zlib": ("zlib", 3),
    "gzip": ("gzip", 3),
    "bz2": ("bz2", 3),
    "lzma": ("lzma", 3),
    "xz": ("xz", 3),
    "lz4": ("lz4", 3),
}
# Not compressed, in the protocols of pickle that joblib does not take by itself.
PROTOCOLS = {"protocol-0": 0, "protocol-1": 1}


def content():
    """The object in the files."""
    base = np.arange(24.0).reshape(2, 3, 4)
    return {
        "C order": base,
        "Fortran order": np.asfortranarray(base),
        "neither order": base.transpose(1, 0, 2),
        "no dimension": np.array(7),
        "empty": np.zeros((0, 5), "f4"),
        "big-endian": np.arange(5, dtype=">i4"),
        "bool": np.array([True, False]),
        "bytes": np.array([b"ab", b"c"]),
        "text": np.array(["ab", "c"]),
        "dates": np.array(["2020-01-01", "NaT"], "M8[D]"),
        "records": np.zeros(3, [("a", "i4"), ("b", "f8", (2,)), ("c", "U3")]),
        "matrix": np.arange(4).reshape(2, 2).view(np.matrix),
        "objects": np.array([1, "a", None, [2.5]], object),
        "array of arrays": _array_of_arrays(),
        "nested": [(np.arange(3), {"x": np.float32(1.5)}), np.arange(4, dtype="u1")],
        "plain": [None, 1, 2.5, "text", b"bytes", (1, 2), {3}, frozenset([4]), 10**30, 1 + 2j, True],
        "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
        "date": dt.date(2020, 1, 2),
        "larger": np.arange(3000, dtype="i8") // 100,
    }


def _array_of_arrays():
    found = np.empty(2, object)
    found[:] = [np.arange(2), np.zeros((2, 2))]
    return found


def main(folder):
    import joblib

    version = ".".join(map(str, sys.version_info[:2]))
    name = f"joblib-{joblib.__version__}-python-{version}-numpy-{np.__version__}.zip"
    with zipfile.ZipFile(os.path.join(folder, name), "w", zipfile.ZIP_DEFLATED) as archive:
        for way in sorted([*WAYS, *PROTOCOLS]):
            path = os.path.join(tempfile.mkdtemp(), way)
            try:
                joblib.dump(content(), path, compress=WAYS.get(way, 0), protocol=PROTOCOLS.get(way))
            except (ValueError, ImportError, NotImplementedError) as error:
                print(name, way, "not written:", error)
                continue
            with open(path, "rb") as file:
                archive.writestr(way, file.read())


if __name__ == "__main__":
    main(sys.argv[1])
