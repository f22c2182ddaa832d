"""``python -m aparallel``: the command line."""

import sys

from aparallel._cli import main

sys.exit(main())
