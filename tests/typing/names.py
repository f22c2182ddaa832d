"""Names that do not exist are errors to a type checker, too. Checked by mypy, never run."""

import aparallel
from aparallel import gahter_parallel  # type: ignore[attr-defined]
from aparallel.web import lifspan  # type: ignore[attr-defined]

aparallel.Poool  # type: ignore[attr-defined]  # noqa: B018

__all__ = ["gahter_parallel", "lifspan"]
