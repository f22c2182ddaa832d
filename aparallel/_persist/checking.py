"""Before anything of a pickle runs: is all of it trusted?

Three ways to find out, each slower than the one before and able to judge more: the opcodes alone
(:mod:`aparallel._persist.tokens`), a dry run (:mod:`aparallel._persist.dry_run`), the walk
(:mod:`aparallel._persist.walk`). The first two say yes, or leave it to the next; only a name that is not trusted is
refused by the dry run already. 600,000 small dictionaries take them 0.3, 0.4 and 5 to 7 s; loading them takes 0.35.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aparallel._persist.dry_run import Undecided, dry_run
from aparallel._persist.guard import Guard
from aparallel._persist.tokens import Look, needed_look
from aparallel._persist.walk import walk

if TYPE_CHECKING:
    from collections.abc import Callable

    from aparallel._ground.stoppable import Stop
    from aparallel._persist.trust import Trust


def check(reader: Callable[[], Any], trust: Trust, stop: Stop, *, foreign: bool = False) -> bool:
    """Hold a pickle against what is trusted. Nothing of it runs, and nothing is imported.

    Returns whether it builds nothing but what is trusted without being asked for: if loading it fails, it is damaged.

    Args:
        reader: gives a file with the pickle, from its beginning each time. It has a ``skip``, too.
        foreign: arrays may stand between its opcodes, as joblib has them.

    Raises:
        UntrustedTypeError: it asks for what *trust* does not allow.
        CorruptFileError: it is no pickle, or one that no pickler makes.
    """
    look = needed_look(reader, stop)
    if look is Look.NONE:
        return True
    if look is Look.DRY_RUN:
        guard = Guard(trust)
        try:
            dry_run(reader(), guard)
        except Undecided:  # the walk, below, can judge everything
            pass
        else:
            if not guard.whys:
                guard.check()
                return trust.is_of_data_only
    guard = Guard(trust, foreign=foreign)
    file = reader()
    walk(file.read, guard, stop, file.skip)
    guard.check()
    return trust.is_of_data_only
