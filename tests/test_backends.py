"""Every backend of ours keeps the promises that aparallel.testing states for all."""

from __future__ import annotations

from aparallel._backends.inline import InlineBackend
from aparallel._backends.process import ProcessBackend
from aparallel._backends.thread import ThreadBackend
from aparallel.abc import Backend
from aparallel.testing import BackendSuite


class TestProcessBackend(BackendSuite):
    def new_backend(self) -> Backend:
        return ProcessBackend()


class TestThreadBackend(BackendSuite):
    def new_backend(self) -> Backend:
        return ThreadBackend()


class TestInlineBackend(BackendSuite):
    def new_backend(self) -> Backend:
        return InlineBackend()
