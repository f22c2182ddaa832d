"""What everyone can be asked to do who keeps objects in files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class FileContender(ABC):
    """One way to write an object to a file and to read it back, used from a coroutine.

    Blocking interfaces run in a thread, so that the loop lives on.
    """

    @abstractmethod
    async def dump(self, obj: Any, path: str) -> None:
        """Write *obj*. Nobody waits for the disk.

        Raises:
            NotOffered: such an object cannot be written.
        """

    @abstractmethod
    async def load(self, path: str) -> Any:
        """Read what :meth:`dump` wrote."""
