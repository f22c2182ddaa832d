"""inspect: what a file contains, without building anything of it."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

from aparallel._persist.opening import read_given
from aparallel._persist.options import LoadOptions, checked_compressors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aparallel._ground.stoppable import Stop
    from aparallel._persist.guard import ArrayInfo, Survey
    from aparallel._persist.opening import Opened
    from aparallel._persist.sources import Source
    from aparallel.abc import Compressor


@dataclasses.dataclass(frozen=True, slots=True)
class FileInfo:
    """What a file contains.

    Attributes:
        format: "aparallel", "joblib" or "pickle".
        version: of aparallel's format; None for the others.
        size: of the file, in bytes; of the object in it, where the source is an open file.
        content_size: of what is in it when it is not compressed, in bytes: the pickle and the arrays.
        compression: the codec's name, or None.
        signed: it carries a signature. Whether that is right, only who has the key can tell.
        mappable: ``mmap_mode`` can be used.
        types: everything that it would import, as "module.name", in order.
        untrusted: those of them that ``load(..., trusted=[])`` would refuse, as they are or as they are used.
        objections: what else it would refuse the file for, in words: the first few.
        arrays: its arrays in order, the first 100,000 of them.
        array_count: how many there are.
    """

    format: str
    version: int | None
    size: int
    content_size: int
    compression: str | None
    signed: bool
    mappable: bool
    types: tuple[str, ...]
    untrusted: tuple[str, ...]
    objections: tuple[str, ...]
    arrays: tuple[ArrayInfo, ...]
    array_count: int


async def inspect(source: Any, *, compressors: Sequence[Compressor] = ()) -> FileInfo:
    """Say what is in a file, without building anything of it: it may be anybody's.

    The pickle is walked and verified; arrays are neither read nor verified.

    Args:
        source: as for :func:`aparallel.load`. A file that can go back stands behind the object then.
        compressors: :class:`aparallel.abc.Compressor` of your own that files may name.

    Cancellation: the thread stops at its next slice and is waited for.

    Raises:
        CorruptFileError: the file is damaged. Its subclasses say how.
        UnsupportedFormatError: it is none of aparallel, joblib or pickle, or of a newer version.
        OSError: it cannot be read.
    """
    options = LoadOptions(compressors=checked_compressors(compressors))
    return await read_given(source, lambda opened, stop, _: _inspect(opened, options, stop), False, "inspect")


def _inspect(opened: Opened, options: LoadOptions, stop: Stop) -> FileInfo:
    from aparallel._persist.recognizing import pickle_codec

    codec = pickle_codec(opened.source, stop)
    if codec is None:
        return _inspect_container(opened, options, stop)
    return _inspect_pickle(opened.source, codec, stop)


def _inspect_container(opened: Opened, options: LoadOptions, stop: Stop) -> FileInfo:
    from aparallel._persist.container import VERSION, Flag
    from aparallel._persist.guard import Survey
    from aparallel._persist.reader import skim_container
    from aparallel._persist.tokens import Look, needed_look
    from aparallel._persist.unpickling import PiecesReader
    from aparallel._persist.walk import walk

    with contextlib.closing(skim_container(opened.source, options, whole=opened.whole)) as content:
        survey = Survey()
        # Plain data asks for nothing and has no arrays.
        if needed_look(lambda: PiecesReader(content.pieces(), stop), stop) is not Look.NONE:
            pickle = PiecesReader(content.pieces(), stop)
            walk(pickle.read, survey, stop, pickle.skip)
        return FileInfo(
            format="aparallel",
            version=VERSION,
            size=opened.source.position,
            content_size=content.pickle_size + content.buffers_size,
            compression=content.header.codec or None,
            signed=Flag.SIGNED in content.header.flags,
            mappable=not content.header.codec,
            **_found(survey),
        )


def _inspect_pickle(source: Source, codec: str, stop: Stop) -> FileInfo:
    from aparallel._persist.guard import Survey
    from aparallel._persist.joblib_files import decompressed
    from aparallel._persist.standins import WRAPPERS
    from aparallel._persist.walk import walk

    survey = Survey(foreign=True)
    content = decompressed(source, codec, stop) if codec else source
    taken = walk(content.read_some, survey, stop, content.skip)
    if not codec:  # what follows is not ours; of what is compressed, nobody knows the end
        source.give_back(source.position - taken)
    is_joblib = bool(WRAPPERS & survey.globals.keys())
    return FileInfo(
        format="joblib" if is_joblib or codec else "pickle",
        version=None,
        size=source.position if source.size is None else source.size,
        content_size=taken,
        compression=codec or None,
        signed=False,
        mappable=not codec,
        **_found(survey),
    )


def _found(survey: Survey) -> dict[str, Any]:
    return {
        "types": tuple(map(str, survey.globals)),
        "untrusted": survey.refused,
        "objections": survey.whys,
        "arrays": tuple(survey.arrays),
        "array_count": survey.array_count,
    }
