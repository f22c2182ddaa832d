"""The quick ways to find a pickle harmless agree with the walk, which knows every opcode, whatever is done to it."""

from __future__ import annotations

import copyreg
import datetime as dt
import io
import itertools
import os
import pickle
import pickletools
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from persisted import Point, arrays, assert_same, plain, twice
from test_persist_trust import HOSTILE, hand_made, named

from aparallel import dumps, loads
from aparallel._ground.stoppable import Stop
from aparallel._persist import nesting, tokens
from aparallel._persist import walk as walk_module
from aparallel._persist.dry_run import Undecided, dry_run
from aparallel._persist.guard import Guard, Survey
from aparallel._persist.nesting import MOST_LEVELS, Levels
from aparallel._persist.standins import BYTES, OPAQUE, Global, Items, Listed, Made, Opaque
from aparallel._persist.tokens import Look, needed_look
from aparallel._persist.trust import Trust
from aparallel._persist.walk import Walk, walk
from aparallel._persist.window import Window
from aparallel.errors import CorruptFileError, UntrustedTypeError

TRUSTED = [Point, twice]


def look_at(data: bytes) -> Look:
    return needed_look(lambda: io.BytesIO(data), Stop())


def quick_verdict(data: bytes) -> str:
    """What the opcodes and the dry run say: "data", "trusted", "untrusted", or "walk" if they leave it to the walk."""
    try:
        look = look_at(data)
    except CorruptFileError:
        return "walk"
    if look is not Look.DRY_RUN:
        return "data" if look is Look.NONE else "walk"
    guard = Guard(Trust(TRUSTED))
    try:
        dry_run(io.BytesIO(data), guard)
        if guard.whys:
            return "walk"
        guard.check()
    except (Undecided, MemoryError):
        return "walk"
    except UntrustedTypeError:
        return "untrusted"
    return "trusted"


def walks_verdict(data: bytes) -> tuple[str, str]:
    """What the walk says, and why."""
    guard = Guard(Trust(TRUSTED))
    try:
        walk(io.BytesIO(data).read, guard, Stop())
        guard.check()
    except UntrustedTypeError as error:
        return "untrusted", str(error)
    except CorruptFileError as error:
        return "corrupt", str(error)
    return "trusted", ""


# What the walk refuses because it cannot tell, or because no pickler does it, and the unpickler does without harm.
HARMLESS = (
    "it adds items to what is nothing imported",  # a list, dictionary or set that is reached through the memo
    "it changes the state of what is nothing imported",  # None, as a state, changes nothing
    "it uses a read-only view of something else than a buffer",  # of bytes
    "in a way that plain data does not need",  # arguments that are reached through the memo
    "its pickle numbers its memo higher than it has entries",  # by less than 256
)


def without_frames(data: bytes) -> bytes:
    opcodes = list(pickletools.genops(data))
    starts = [at or 0 for _, _, at in opcodes] + [len(data)]
    return b"".join(
        data[start:end]
        for (opcode, _, _), start, end in zip(opcodes, starts, starts[1:], strict=False)
        if opcode.name != "FRAME"
    )


def seeds() -> list[bytes]:
    """Pickles of everything, short ones, as picklers write them and with nothing that says where frames end."""
    mixed = [[{"a": 1, "b": "c"}] * 3, {"a": [Point(1, 2), twice, dt.date(2020, 1, 1)]}, os.getcwd]
    objects = [*plain().values(), *arrays().values(), mixed]
    written = [pickle.dumps(obj, protocol) for obj in objects for protocol in (2, 3, 4, 5)]
    short = [data for data in written if len(data) < 3000]
    return [*short, *map(without_frames, short), *HOSTILE.values()]


OPCODES = bytes(ord(opcode.code) for opcode in pickletools.opcodes)


def mutated(data: bytes, choose: random.Random) -> bytes:
    """*data* with opcodes or bytes put in, replaced, removed or repeated."""
    found = bytearray(data)
    for _ in range(choose.choice((1, 1, 1, 2, 3, 5))):
        at = choose.randrange(2, len(found) + 1) if len(found) > 2 else len(found)
        kind = choose.randrange(6)
        if kind == 0:
            found[at : at + 1] = bytes([choose.choice(OPCODES)])
        elif kind == 1:
            found[at:at] = bytes([choose.choice(OPCODES)])
        elif kind == 2:
            del found[at : at + 1]
        elif kind == 3:
            found[at : at + 1] = bytes([choose.randrange(256)])
        elif kind == 4:
            found[at:at] = found[at : at + choose.randrange(30)]
        else:
            start = choose.randrange(len(found) + 1)
            found[at:at] = found[start : start + choose.randrange(20)]
    return bytes(found)


class Log(Survey):
    """Notes all that it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[Any, ...]] = []

    def calls_matter(self, name: Global) -> bool:
        return True

    def changes_matter(self, name: Global) -> bool:
        return True

    def on_global(self, found: Global) -> None:
        super().on_global(found)
        if ("global", str(found)) not in self.events:
            self.events.append(("global", str(found)))

    def on_call(self, made: Made) -> None:
        super().on_call(made)
        self.events.append(("call", str(made.of), made.args))

    def on_build(self, target: Any, state: Any) -> None:
        super().on_build(target, state)
        self.events.append(("state", str(target.of), state))

    def on_fill(self, target: Any, frail: list[Made]) -> None:
        # The unpickler adds them one by one.
        if self.events[-1] != ("items", str(target.of)):
            self.events.append(("items", str(target.of)))


def looks_like(exact: Any, seen: Any) -> bool:
    """Whether what the dry run saw is what the walk saw, as far as it could tell."""
    if seen is OPAQUE or (isinstance(exact, Made) and exact.of == getattr(seen, "of", None)):
        return True
    if exact is BYTES and isinstance(seen, bytes):  # a bytearray
        return True
    if isinstance(seen, Listed):
        return isinstance(exact, Listed) and exact.count == seen.count
    if isinstance(seen, Items):
        return isinstance(exact, Items)
    if isinstance(seen, tuple) and isinstance(exact, tuple):
        return len(exact) == len(seen) and all(map(looks_like, exact, seen))
    return type(exact) is type(seen) and (exact == seen or isinstance(seen, Opaque))


def assert_quick_ways_are_safe(data: bytes) -> None:
    quick = quick_verdict(data)
    if quick == "walk":
        return
    verdict, why = walks_verdict(data)
    if quick == "untrusted":
        assert verdict != "trusted", data
        return
    if quick == "data":
        assert_is_data(data)
        return
    assert verdict == "trusted" or why.endswith(HARMLESS), (data, why)
    if verdict == "trusted":
        logs = Log(), Log()
        dry_run(io.BytesIO(data), logs[0])
        walk(io.BytesIO(data).read, logs[1], Stop())
        exact, seen = logs[0].events, logs[1].events
        assert len(exact) == len(seen), data
        for one, other in zip(exact, seen, strict=True):
            assert one[:2] == other[:2], data
            assert looks_like(one[2:], other[2:]), data


class _NoNames(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise AssertionError("it asks for a name")

    def persistent_load(self, number: Any) -> Any:
        raise AssertionError("it asks for an object that is kept elsewhere")


def assert_is_data(data: bytes) -> None:
    """Fail if the unpickler asks for anything, or makes anything else than data, or fails as no data does."""
    try:
        found = _NoNames(io.BytesIO(data), buffers=iter(())).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, LookupError, TypeError, ValueError):
        return
    plain_kinds = {int, float, str, bytes, bytearray, bool, type(None), list, dict, tuple, set, frozenset}
    seen: dict[int, Any] = {}
    waiting = [found]
    while waiting:
        obj = waiting.pop()
        assert type(obj) in plain_kinds
        if id(obj) not in seen and isinstance(obj, (list, tuple, set, frozenset, dict)):
            seen[id(obj)] = obj
            waiting += [*obj.keys(), *obj.values()] if isinstance(obj, dict) else obj


@pytest.mark.parametrize("seed", range(4))
def test_what_is_found_harmless_at_once_is_what_the_walk_finds_harmless(seed: int) -> None:
    choose, originals = random.Random(seed), seeds()
    for _ in range(800):
        assert_quick_ways_are_safe(mutated(choose.choice(originals), choose))


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 110))
def test_what_is_found_harmless_at_once_is_what_the_walk_finds_harmless_at_length(seed: int) -> None:
    choose, originals = random.Random(seed), seeds()
    for _ in range(10_000):
        assert_quick_ways_are_safe(mutated(choose.choice(originals), choose))


def test_unchanged_pickles_are_judged_as_the_walk_judges_them() -> None:
    for data in seeds():
        quick, (verdict, _) = quick_verdict(data), walks_verdict(data)
        assert quick in ("walk", verdict) or (quick, verdict) == ("data", "trusted")
        assert_quick_ways_are_safe(data)


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_hostile_is_found_harmless(name: str) -> None:
    assert quick_verdict(HOSTILE[name]) in ("untrusted", "walk")


@pytest.fixture
def no_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: Walk) -> Any:
        raise AssertionError("it was walked")

    monkeypatch.setattr(Walk, "run", run)


@pytest.mark.usefixtures("no_walk")
@pytest.mark.parametrize("name", [*plain(), *(name for name in arrays() if name != "subclass")])
async def test_data_and_arrays_need_no_walk(name: str) -> None:
    obj = {**plain(), **arrays()}[name]
    assert_same(await loads(await dumps(obj), trusted=[]), obj)
    for protocol in (2, 3, 4, 5):
        data = pickle.dumps(obj, protocol)
        # Not the object itself: NumPy changes the byte order.
        assert_same(await loads(data, trusted=[]), pickle.loads(data))


@pytest.mark.usefixtures("no_walk")
async def test_objects_of_trusted_types_need_no_walk() -> None:
    obj = [[Point(1, 2), twice] * 2, {dt.date(2020, 1, 1): "x"}, {"a" * 300: "b" * 70_000}, list(range(50_000))]
    assert await loads(await dumps(obj), trusted=TRUSTED) == obj
    with pytest.raises(UntrustedTypeError) as caught:
        await loads(await dumps(obj), trusted=[])
    assert caught.value.names == ("persisted.Point", "persisted.twice")


def deepest_key(obj: Any, found: dict[int, int]) -> int:
    """The most levels of tuples that are hashed or might be, in anything in *obj*; *found* is by identity."""

    def levels(part: Any) -> int:
        if id(part) not in found:
            found[id(part)] = 1 + max(map(levels, part)) if type(part) is tuple and part else 0
        return found[id(part)]

    parts = [*obj.keys(), *obj.values()] if type(obj) is dict else obj
    inside = max((deepest_key(part, found) for part in parts if type(part) in (tuple, list, dict, set)), default=0)
    return max(inside, levels(obj))


def random_tuples(choose: random.Random, depth: int, known: list[Any]) -> Any:
    """Something of tuples and other things, some of it shared."""
    kind = choose.randrange(7 if depth else 2)
    if kind < 2 and known and choose.random() < 0.3:
        return choose.choice(known)
    if kind < 2:
        return choose.choice((None, 1, 2.5, "text", b"bytes", (), "long" * 100))
    parts = [random_tuples(choose, depth - 1, known) for _ in range(choose.randrange(5))]
    made: Any = tuple(parts) if kind < 5 else parts if kind == 5 else dict(enumerate(parts))
    known.append(made)
    return made


# In protocol 2, bytes are a call, which counts as a level.
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_levels_of_tuples_are_counted_and_none_is_missed(protocol: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nesting, "MOST_LEVELS", 4)
    monkeypatch.setattr(walk_module, "MOST_LEVELS", 4)
    monkeypatch.setattr(tokens, "_FREE", 0)
    monkeypatch.setattr(tokens, "_FEW", 0)
    choose, verdicts = random.Random(protocol), set()
    for _ in range(400):
        obj = [random_tuples(choose, 7, []), dt.date(2020, 1, 1)][: choose.choice((1, 2))]
        data = pickle.dumps(obj, protocol)
        are_too_deep = deepest_key(obj, {}) > 4
        verdicts.add(are_too_deep)
        assert (look_at(data) is Look.WALK) is are_too_deep
        verdict, why = walks_verdict(data)
        assert (verdict == "untrusted") is are_too_deep, why
    assert verdicts == {True, False}


def test_every_protocol_s_data_is_told_by_its_opcodes() -> None:
    numbers = [0, 255, 65_536, -1, 2**40, 10**700, 1.5, True, None]
    many = [{"key": [number, (1, 2), (1, 2, 3, 4)], "other": {1, 2}} for number in range(10_000)]
    for protocol in (2, 3, 4, 5):
        data = pickle.dumps([numbers, "a" * 300, "b" * 100_000, {}, [], (), "ü", many], protocol)
        # Before protocol 4, sets and bytes were calls.
        assert look_at(data) is (Look.NONE if protocol >= 4 else Look.DRY_RUN)
        assert look_at(pickle.dumps([numbers, "a" * 300, [many[0]["key"]] * 9], protocol)) is Look.NONE


def array_of(dtype: bytes) -> bytes:
    return named("aparallel._persist.arrays", "array") + b"(C\x08aaaaaaaa" + dtype + b"K\x01\x85\x8c\x01CtR"


# A data type with one field, whose dictionary is entry 0 of the memo, and which is entry 1.
FIELD = named("numpy", "dtype") + b"\x8c\x02f8\x89\x88\x87R(K\x03\x8c\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
RECORD = (
    b"}\x94" + named("numpy", "dtype") + b"\x8c\x02V8\x89\x88\x87R\x94"
    b"(K\x03\x8c\x01|N\x8c\x01a\x85h\x00\x8c\x01a" + FIELD + b"K\x00\x86sK\x08K\x01K\x10tb"
)  # fmt: skip


@pytest.mark.parametrize("change", [b"h\x00\x8c\x01bh\x01M\xff\xff\x86s0", b"h\x00\x8c\x01ah\x01M\xff\xff\x86s0"])
async def test_fields_cannot_be_changed_behind_a_data_type_s_back(change: bytes) -> None:
    for data in (hand_made(RECORD, b"0", change, array_of(b"h\x01")), hand_made(RECORD, change, b"0N")):
        assert quick_verdict(data) == "walk"
        with pytest.raises(UntrustedTypeError):
            await loads(data, trusted=[])


async def test_an_extension_of_copyreg_is_refused_though_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    cache: dict[int, Any] = copyreg._extension_cache  # type: ignore[attr-defined]
    monkeypatch.setitem(cache, 200, os.getcwd)
    for data in (hand_made(b"\x82\xc8)R"), hand_made(named("datetime", "date"), b"0\x82\xc8)R")):
        assert look_at(data) is Look.WALK
        with pytest.raises(UntrustedTypeError, match="extension 200"):
            await loads(data, trusted=[])
    assert pickle.loads(hand_made(b"\x82\xc8)R")) == os.getcwd()  # what would have run


@pytest.mark.parametrize("put", [b"r\xff\xff\xff\x7f", b"r\x00\x00\x00\x20"])
@pytest.mark.parametrize("before", [b"N", b"cdatetime\ndate\nN"])
async def test_a_memo_that_is_numbered_high_never_reaches_the_unpickler(put: bytes, before: bytes) -> None:
    for version in (b"\x80\x03", b"\x80\x04"):
        assert look_at(version + before + put + b".") is Look.WALK
        with pytest.raises(CorruptFileError, match="higher than it has entries"):
            await loads(version + before + put + b".", trusted=[])


def test_an_opcode_that_a_frame_s_end_cuts_is_left_to_the_walk() -> None:
    inside = b"(" + b"K\x01" * 5
    whole = b"\x80\x04\x95" + len(inside).to_bytes(8, "little") + inside + b"t."
    assert look_at(whole) is Look.NONE
    for length in (len(inside) - 1, len(inside) + 3, 1 << 60):
        assert look_at(whole[:3] + length.to_bytes(8, "little") + whole[11:]) is Look.WALK
    text = b"\x8c\x05hello"
    assert look_at(b"\x80\x04\x95\x04" + bytes(7) + text + b".") is Look.WALK
    long_text = b"X\x00\x08\x00\x00" + b"a" * 2048
    assert look_at(b"\x80\x04\x95\x04" + bytes(7) + long_text + b".") is Look.WALK


@pytest.mark.parametrize(
    "attempt",
    [
        b"N}\x8c\x01aK\x01s\x86b",  # a state
        b"]b",
        b"K\x01a",  # items
        b"(K\x01K\x02e",
        b"\x8c\x01aK\x01s",
        b"(K\x01\x90",
        b"\x93",  # as a name
        b"\x98",  # as a buffer
    ],
)
@pytest.mark.parametrize("target", ["name", "instance", "buffer", "plain"])
def test_stand_ins_let_nothing_be_done_to_them_unseen(target: str, attempt: bytes) -> None:
    date = named("datetime", "date")
    made = {"name": date, "instance": date + b"K\x01K\x01K\x01\x87R", "buffer": b"\x97", "plain": date + b"0\x8c\x01x"}
    data = hand_made(made[target], attempt)
    if target == "buffer" and attempt == b"\x98":
        assert quick_verdict(data) == "trusted"
    else:
        assert quick_verdict(data) == "walk"


async def test_more_names_than_any_pickler_asks_for_are_judged_all_the_same() -> None:
    names = b"".join(named("absent", f"name{number}") + b"0" for number in range(10_050))
    with pytest.raises(UntrustedTypeError) as caught:
        await loads(hand_made(names, b"N"), trusted=[])
    assert len(caught.value.names) == 10_050


async def test_tuples_that_share_tuples_are_looked_at_within_bounds() -> None:
    nested = b")" + b"".join(b"\x94h" + bytes([depth]) + b"\x86" for depth in range(60))
    data = hand_made(nested, named("datetime", "date"), b"h\x3b\x85R")
    with pytest.raises((UntrustedTypeError, CorruptFileError)):
        await loads(data, trusted=[])


async def test_calls_that_share_a_long_tuple_are_looked_at_within_bounds() -> None:
    shared = b"(" + b"N" * 4000 + b"t\x94" + named("collections", "deque") + b"\x94"
    data = hand_made(shared, b"(", b"h\x01h\x00R" * 5_000, b"t")
    assert quick_verdict(data) == "walk"
    with pytest.raises(UntrustedTypeError):
        await loads(data, trusted=[])


@pytest.mark.parametrize("count", [300, 4000])
async def test_data_types_may_have_thousands_of_fields(count: int) -> None:
    array = np.zeros(2, [(f"field{number}", "i2") for number in range(count)])
    for data in (await dumps(array), pickle.dumps(array, 2), pickle.dumps(array, 5)):
        found = await loads(data, trusted=[])
        assert found.dtype == array.dtype
    assert walks_verdict(pickle.dumps(array, 5)) == ("trusted", "")


# Tuples that are not counted, as they hold nothing but numbers and texts


SOME_OPCODES = [b"N", b"K\x94", b"K\x87", b"\x8c\x01t", b"\x85", b"\x86", b"\x87", b"(", b"t", b"h\x00", b"h\x01"]
SOME_OPCODES += [b"\x94", b")", b"]", b"}", b"a", b"e", b"s", b"0", b"1", b"\x91", b"G1234567\x85"]
PHRASES = [[b"K\x01", b"K\x02", b"\x86"], [b"(", b"N", b"N", b"t"], [b"N", b"N", b"\x87"], [b"h\x00", b"\x85", b"\x94"]]
programs = st.lists(
    st.one_of(st.sampled_from(SOME_OPCODES).map(lambda op: [op]), st.sampled_from(PHRASES)), max_size=60
)


@given(programs)
def test_what_is_not_counted_has_one_level(phrases: list[list[bytes]]) -> None:
    program = b"".join(itertools.chain.from_iterable(phrases))
    levels = Levels()
    few = 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "_FREE", 0)
        patch.setattr(tokens, "_FEW", few)
        try:
            tokens._Steps(Window(io.BytesIO(b"\x80\x04" + program + b".").read, Stop()), levels).run()
            found = tokens._Steps(Window(io.BytesIO(b"\x80\x04" + program + b".").read, Stop()), None, flat=True).run()
        except (IndexError, tokens._ManyTuples):  # it is no pickle; or the levels are counted
            return
    if found is not Look.WALK:
        assert levels._deepest <= 1 + few


@pytest.mark.parametrize("protocol", [4, 5])
def test_rows_are_stepped_over_without_counting_levels(protocol: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(levels: Levels, opcodes: list[bytes]) -> None:
        raise AssertionError("levels were counted")

    monkeypatch.setattr(Levels, "follow", counted)
    rows: list[Any] = [(x, x / 7, f"text {x}") for x in range(5000)]
    for data in (rows, dict.fromkeys(rows), [(x, x, x, str(x)) for x in range(5000)], [(x,) for x in range(5000)]):
        assert look_at(pickle.dumps(data, protocol)) is Look.NONE
    with pytest.raises(AssertionError, match="levels were counted"):
        look_at(pickle.dumps([(x, (x,)) for x in range(5000)], protocol))


@pytest.mark.parametrize("level", [b"K\x01K\x02\x87", b"\x85", b"K\x01\x86", b"K\x01K\x02K\x0300\x86"])
def test_levels_are_found_among_many_rows(level: bytes) -> None:
    rows = b"K\x01K\x02\x86" * 5000
    for deep, expected in ((MOST_LEVELS + 10, Look.WALK), (100, Look.NONE)):
        assert look_at(b"\x80\x04]" + rows + b")" + level * deep + rows + b".") is expected


def test_levels_are_found_between_marks() -> None:
    rows = b"(K\x01K\x02K\x03K\x04t" * 5000
    for deep, expected in ((MOST_LEVELS + 10, Look.WALK), (100, Look.NONE)):
        assert look_at(b"\x80\x04]" + rows + b"(" * deep + b")" + b"K\x01t" * deep + rows + b".") is expected
