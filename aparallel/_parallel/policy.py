"""What stops a running call: how ``on_cancel`` and ``timeout`` are kept by one kind of workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aparallel._ground.nesting import nesting_level

if TYPE_CHECKING:
    from aparallel.abc import Backend, OnCancel


class StopPolicy:
    """What is done to the running calls of one pool that are cancelled or overrun their timeout.

    Threads that stand in for processes, inside a worker, do what comes nearest, so that code need not know how deep it
    is called: ``"kill"``, which nothing can do to a thread, is ``"abandon"`` there, and a call with a timeout is
    abandoned unless it is to be waited for.

    Attributes:
        usual: what is done to calls that ask for nothing.

    Raises:
        ValueError: *on_cancel* is something that such workers cannot do.
    """

    def __init__(self, backend: Backend, on_cancel: OnCancel | None, *, stands_in: bool) -> None:
        self._backend = backend
        self._given = on_cancel
        self._stands_in = stands_in
        self.usual = self.of_call(None, None)

    def of_call(self, on_cancel: OnCancel | None, timeout: float | None) -> OnCancel:
        """Return what is done to a call that asks for *on_cancel* and has *timeout* seconds, None for what is usual.

        Raises:
            ValueError: such workers cannot keep that.
        """
        asked = self._given if on_cancel is None else on_cancel
        backend = self._backend
        if self._stands_in and asked != "wait" and timeout is not None:
            return "abandon"
        if self._stands_in and asked == "kill" and not backend.can_kill:
            return "abandon"
        policy = backend.on_cancel if asked is None else asked
        if policy == "kill" and not backend.can_kill:
            raise ValueError(
                f"on_cancel='kill' cannot be kept by backend {backend.name!r}: nothing can stop a running "
                f"{backend.name}. Use 'wait' or 'abandon'."
            )
        if timeout is not None and policy != "abandon" and not (policy == "kill" and backend.can_time):
            raise ValueError(
                f"timeout={timeout!r} cannot be kept: backend {backend.name!r} with on_cancel={policy!r} never stops a "
                f"running call. {self._way_to_have_timeouts()}"
            )
        return policy

    def _way_to_have_timeouts(self) -> str:
        if self._backend.can_time:
            return "Use on_cancel='kill' to stop it, or 'abandon' to return and leave it running."
        leave = "on_cancel='abandon' to return and leave it running."
        if nesting_level():
            return f"This is inside a worker, where 'process' means threads and nothing can stop one: use {leave}"
        return f"Use process workers, or {leave}"
