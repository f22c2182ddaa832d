"""What a pool's calls came to: how many ended in which way, and how long they took."""

from __future__ import annotations

# The average of recent calls is that of all as long as there are no more than this; then old ones fade.
_MANY_CALLS = 32


class Accounts:
    """How many calls ended in which way since the pool began, and how long recent ones took.

    Attributes:
        completed, failed, broken, refused: as in :class:`~aparallel.PoolStatistics`.
        mean_seconds: how long calls took lately, whichever they were; None before the first.
    """

    def __init__(self) -> None:
        self.completed = self.failed = self.broken = self.refused = 0
        self.mean_seconds: float | None = None
        self._measured = 0

    def learn(self, seconds: float, calls: int) -> None:
        """Take in that *calls* took *seconds* each."""
        weight = calls / (self._measured + calls)
        self.mean_seconds = seconds * weight + (self.mean_seconds or 0.0) * (1 - weight)
        self._measured = min(self._measured + calls, _MANY_CALLS)
