"""Names that do not exist are errors to a type checker, too. Checked by mypy, never run."""

from typing import assert_type

import aparallel
from aparallel import gahter_parallel  # type: ignore[attr-defined]
from aparallel.web import lifspan  # type: ignore[attr-defined]

assert_type(aparallel.__version__, str)
aparallel.Poool  # type: ignore[attr-defined]  # noqa: B018

__all__ = ["gahter_parallel", "lifspan"]
