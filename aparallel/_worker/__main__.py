"""Started as ``python -P .../aparallel/_worker/__main__.py SOCKET LIFELINE OUTBOX [LOGS]``.

By path, because the parent may run from a checkout that the child's ``sys.path`` does not hold, and
with ``-P``, because the current directory may hold a ``socket.py``.
"""

import sys

if __name__ == "__main__":
    root = __file__.rsplit("/", 3)[0]
    sys.path.insert(0, root)
    from aparallel._worker.loop import main

    sys.path.remove(root)
    main([int(word) for word in sys.argv[1:]])
