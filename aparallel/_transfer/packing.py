"""What calls carry, made into payloads: as it is, or pickled, on the loop or in a thread. Not loaded in a child."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aparallel._ground.hop import Pauses
from aparallel._transfer.lending import NoDescriptorError
from aparallel._transfer.out_of_band import NEVER, Awaited, OutOfBand, TooLarge
from aparallel._transfer.pickling import is_plain_array, pickle_in_slices, pickle_plain, pickle_within
from aparallel._transfer.shipment import LazyMemory, Shipment, with_references
from aparallel._wire.frames import NUMBERS, TEXTS, UNNAMED

if TYPE_CHECKING:
    from collections.abc import Callable

    from aparallel._transfer.functions import Functions, PickledFunction
    from aparallel._transfer.out_of_band import Reference, Source
    from aparallel._transfer.pickling import Parted
    from aparallel._transfer.users import User
    from aparallel.abc import Sharing

# Plain arguments are put into a message as they are. Text in them is plain up to this length.
SHORT = 1024

# What is pickled on the loop at most, in bytes: about a quarter of a millisecond. Of text, bytes and buffers that are
# only copied so much comes on top, which takes about as long.
ON_LOOP_BYTES = 64 * 1024
COPIED_ON_LOOP_BYTES = 512 * 1024


def plain_payload(args: tuple[Any, ...]) -> Any:
    """Return the payload for arguments that are all plain: if it is one, that.

    It saves both sides a tuple, of which thousands at a time would have the garbage collector look through the whole
    program.
    """
    return args[0] if len(args) == 1 and type(args[0]) is not bytes else args


def plain_payload_with_names(args: tuple[Any, ...], keywords: dict[str, Any]) -> dict[Any, Any] | None:
    """Return the payload for arguments of which *args* are plain, if those with names are, too; else None."""
    for name, value in keywords.items():
        kind = type(value)
        if type(name) is not str or (kind not in NUMBERS and not (kind in TEXTS and len(value) <= SHORT)):
            return None
    return {UNNAMED: args, **keywords}


class Packer:
    """Makes payloads of what the calls of one encoder carry, and pickles the functions that travel by value.

    *content* is a call's arguments, those with names, and context variables.

    Attributes:
        user: for whose sake arrays are kept in shared memory; None if for nobody's.
    """

    def __init__(self, functions: Functions, memory: LazyMemory, sharing: Sharing, user: User | None) -> None:
        self._functions = functions
        self._memory = memory
        self._sharing = sharing
        self.user = user
        self._limit = NEVER if sharing.max_nbytes is None else sharing.max_nbytes
        # On the loop nothing large is written, only referred to.
        self._referring = OutOfBand(self._limit, sharing.mmap_mode, self._refer)
        self._awaiting = OutOfBand(self._limit, sharing.mmap_mode, Awaited)
        # What is being pickled on the loop.
        self._content: object = self

    def pack(self, content: Any) -> bytes | Shipment:
        """Make a payload on the loop. What is shared already is referred to.

        Raises:
            TooLarge: there is more that is large.
        """
        if (size := self._size_of_plain(content)) is not None:
            return with_references([bytes(piece) for piece in pickle_plain(content, size)], [])
        self._content = content
        try:
            return with_references(*pickle_within(content, ON_LOOP_BYTES, COPIED_ON_LOOP_BYTES, self._referring))
        finally:
            self._content = self  # which nobody may ask about

    def pack_large(self, content: Any) -> tuple[bytes | Shipment, int]:
        """Make a payload in a thread, with what is large in shared memory; return also how many bytes that took."""
        pieces, sources = self._pickled_in_thread(content, self._limit)
        size = sum(map(len, pieces))
        if not sources:
            return with_references(pieces, []), size
        try:
            sharing = self._sharing
            parts, written = self._memory.get().place(sources, sharing.temp_folder, sharing.mmap_mode, self.user)
        except NoDescriptorError:  # through the socket, then
            pieces, references = self._pickled_in_thread(content, NEVER)
            return with_references(pieces, references), sum(map(len, pieces))
        return Shipment(pieces, size, parts), size + written

    def pickle_to_hold(self, content: Any) -> Parted:
        """Pickle on the loop, with an Awaited for all that is large and is not shared already.

        Raises:
            TooLarge: it is to be pickled in a thread.
        """
        return pickle_within(content, ON_LOOP_BYTES, COPIED_ON_LOOP_BYTES, self._awaiting)

    def reference_as_held(self, marker: Awaited) -> Reference | None:
        """As it was in the moment in which it was held. What it is like now is not asked: it may have changed since."""
        return self._memory.reference_to(marker.source, self._sharing.mmap_mode, self.user, None)

    def pickle_function(self, fn: Callable[..., Any]) -> bytes:
        """Pickle a function by value, on the loop.

        Raises:
            TooLarge: it is to be pickled in a thread.
        """
        pieces, references = pickle_within(fn, ON_LOOP_BYTES, COPIED_ON_LOOP_BYTES, self._referring)
        if references:
            raise TooLarge
        return b"".join(pieces)

    def pickle_large_function(self, fn: Callable[..., Any]) -> PickledFunction:
        """Pickle a function in a thread; one that has buffers for shared memory travels as an argument."""
        pieces, sources = self._pickled_in_thread(fn, self._limit)
        if sources:
            return self._functions.as_argument(fn)
        return self._functions.by_content(fn, b"".join(pieces), witnessed=False)

    def _pickled_in_thread(self, obj: object, limit: int) -> Parted:
        """Pickle *obj* without what is larger than *limit*."""
        return pickle_in_slices(obj, Pauses().when_due, OutOfBand(limit, self._sharing.mmap_mode))

    def _size_of_plain(self, content: Any) -> int | None:
        """About how many bytes arguments take that are nothing but numbers, text and arrays; None if they are not."""
        args, keywords, values = content
        if keywords or values is not None:
            return None
        size = 0
        for value in args:
            kind = type(value)
            if kind in TEXTS:
                size += len(value)
            elif kind not in NUMBERS:
                # One with a base may be of shared memory.
                if not is_plain_array(value, self._limit) or getattr(value, "base", None) is not None:
                    return None
                size += value.nbytes
        return size if size <= COPIED_ON_LOOP_BYTES else None

    def _refer(self, source: Source) -> Reference | None:
        return self._memory.reference_to(source, self._sharing.mmap_mode, self.user, self._is_inert)

    def _is_inert(self) -> bool:
        """Whether nobody's code runs before what is being pickled is: a call sees arrays as that leaves them."""
        from aparallel._transfer.stillness import is_inert

        return is_inert(self._content)
