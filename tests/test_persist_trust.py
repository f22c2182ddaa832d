"""With trusted=, a file builds plain data, NumPy's data types and what was named, and nothing else runs."""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import functools
import io
import os
import pathlib
import pickle
import pickletools
import subprocess
import sys
import time
import types
import urllib.parse
import zoneinfo
from typing import Any

import numpy as np
import pytest
from persisted import Point, Tagged, arrays, assert_same, plain, twice

import aparallel
from aparallel import dumps, inspect, loads
from aparallel._ground.stoppable import Stop
from aparallel._persist.arrays import array, masked_array
from aparallel._persist.sinks import CallableSink
from aparallel._persist.writer import ContainerWriter
from aparallel.errors import CorruptFileError, UntrustedTypeError

ran: list[str] = []


def note(text: str) -> str:
    ran.append(text)
    return text


class Calls:
    """Pickles as a call."""

    def __init__(self, fn: Any, *args: Any) -> None:
        self.call = fn, args

    def __reduce__(self) -> Any:
        return self.call


class Noting:
    """Notes that it was given a state."""

    def __setstate__(self, state: Any) -> None:
        note("state")

    def __getstate__(self) -> Any:
        return {"a": 1}


@pytest.fixture(autouse=True)
def nothing_ran_yet() -> None:
    ran.clear()


@pytest.mark.parametrize("name", [name for name in arrays() if name != "subclass"])
async def test_arrays_are_trusted(name: str) -> None:
    assert_same(await loads(await dumps(arrays()[name]), trusted=[]), arrays()[name])


@pytest.mark.parametrize("name", plain())
@pytest.mark.parametrize("protocol", [2, 3, 4, 5, None])
async def test_plain_data_is_trusted_however_it_is_pickled(name: str, protocol: int | None) -> None:
    data = await dumps(plain()[name]) if protocol is None else pickle.dumps(plain()[name], protocol)
    assert_same(await loads(data, trusted=[]), plain()[name])


@pytest.mark.filterwarnings("ignore:The chararray class is deprecated")  # from NumPy 2.5 on
@pytest.mark.skipif("chararray" not in dir(np.char), reason="this NumPy has no chararray")
async def test_numpy_s_rarer_kinds_are_trusted() -> None:
    characters = np.array(["ab", "c"]).view(np.char.chararray)
    for data in (await dumps([characters, np.ma.masked]), pickle.dumps([characters, np.ma.masked], 2)):
        found, masked = await loads(data, trusted=[])
        assert type(found) is np.char.chararray
        assert found.tolist() == ["ab", "c"]
        assert masked is np.ma.masked


async def test_types_and_functions_are_trusted_by_themselves_and_by_name() -> None:
    data = await dumps([Point(1, 2), twice, np.arange(4).view(Tagged)])
    with pytest.raises(UntrustedTypeError) as caught:
        await loads(data, trusted=[])
    assert caught.value.names == ("persisted.Point", "persisted.twice", "persisted.Tagged")
    for trusted in (
        [Point, twice, Tagged],
        ["persisted.Point", "persisted.twice", "persisted.Tagged"],
        {Point, twice, Tagged},
    ):
        point, function, array = await loads(data, trusted=trusted)
        assert point == Point(1, 2)
        assert function is twice
        assert type(array) is Tagged


async def test_a_public_name_stands_for_the_one_that_files_use() -> None:
    data = await dumps([os.getcwd, Point.Inner])
    assert (await loads(data, trusted=["os.getcwd", Point.Inner]))[0] is os.getcwd
    for other in ("os.getpid", "os.nonesuch", "nonesuch.getcwd", "os.path.os.getcwd", "pathlib.os.getcwd"):
        with pytest.raises(UntrustedTypeError) as caught:
            await loads(data, trusted=[other, Point.Inner])
        assert caught.value.names == ("posix.getcwd",)
    # What a file does not ask for is not imported.
    assert "wsgiref.validate" not in sys.modules
    await loads(await dumps([np.arange(3), Point(1, 2)]), trusted=["wsgiref.validate.validator", "persisted.Point"])
    assert "wsgiref.validate" not in sys.modules


@pytest.mark.parametrize("protocol", range(6))
async def test_what_a_class_has_is_trusted_by_its_name_however_it_is_reached(protocol: int) -> None:
    # By getattr: in early protocols a class in a class, and methods of types that are written in C in all of them.
    obj = [Point.Inner, dict.fromkeys, dt.datetime.fromtimestamp]
    data = pickle.dumps(obj, protocol)
    with pytest.raises(UntrustedTypeError) as caught:
        await loads(data, trusted=[])
    for trusted in ([Point, *obj], caught.value.names, (await inspect(io.BytesIO(data))).untrusted):
        assert await loads(data, trusted=trusted) == obj
    for trusted in ([Point, dict, dt.datetime], [Point, *obj[1:]], [Point, *obj[:2]]):
        with pytest.raises(UntrustedTypeError):
            await loads(data, trusted=trusted)


@pytest.mark.parametrize("protocol", range(6))
async def test_times_of_a_zone_are_plain_data(protocol: int) -> None:
    time_ = dt.datetime(2020, 1, 2, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"))
    for data in (pickle.dumps(time_, protocol), await dumps(time_)):
        found = await loads(data, trusted=[])
        assert found == time_
        assert found.tzinfo is time_.tzinfo


@pytest.mark.parametrize("protocol", [0, 1, 2, 3])
async def test_what_python_2_called_otherwise_is_trusted_by_itself_and_by_either_name(protocol: int) -> None:
    # Protocols 0 to 2 ask for exceptions.ValueError, urlparse.ParseResult and __builtin__.len.
    obj = [ValueError("x"), urllib.parse.urlparse("http://a/b"), len]
    data = pickle.dumps(obj, protocol)
    for trusted in (
        [ValueError, urllib.parse.ParseResult, len],
        ["builtins.ValueError", "urllib.parse.ParseResult", "builtins.len"],
        ["exceptions.ValueError", "urllib.parse.ParseResult", "__builtin__.len"],
    ):
        assert repr(await loads(data, trusted=trusted)) == repr(obj)
    with pytest.raises(UntrustedTypeError):
        await loads(data, trusted=[KeyError, urllib.parse.ParseResult, len])


async def test_a_module_of_the_user_s_that_is_called_as_one_of_python_2_does_not_stand_for_that() -> None:
    # In Python 2, commands was what is in subprocess now.
    for asked, listed in (("commands", "commands"), ("subprocess", "commands")):
        data = hand_made(named(asked, "run"), b"\x8c\x04true\x85R")
        with pytest.raises((UntrustedTypeError, ModuleNotFoundError)):
            await loads(data, trusted=[f"{listed}.run"])


async def test_a_class_in_a_class_is_trusted_by_itself_and_not_with_the_outer_one() -> None:
    data = await dumps(Point.Inner())
    assert type(await loads(data, trusted=[Point.Inner])) is Point.Inner
    assert type(await loads(data, trusted=["persisted.Point.Inner"])) is Point.Inner
    with pytest.raises(UntrustedTypeError, match=r"persisted\.Point\.Inner"):
        await loads(data, trusted=[Point])


async def test_models_load_when_all_that_they_ask_for_is_named() -> None:
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(3, random_state=0).fit([[0.0], [1.0]] * 5, [0, 1] * 5)
    data = await dumps(model)
    with pytest.raises(UntrustedTypeError) as caught:
        await loads(data, trusted=[])
    assert "sklearn.ensemble._forest.RandomForestClassifier" in caught.value.names
    found = await loads(data, trusted=caught.value.names)
    assert found.predict([[1.0]]) == [1]


@pytest.mark.parametrize(
    ("trusted", "error"),
    [(np, TypeError), ([np], TypeError), (["numpy"], ValueError), (["numpy.random"], TypeError),
     ("persisted.Point", TypeError), (True, TypeError), ([5], TypeError), (["os."], ValueError),
     ([functools.partial(print)], TypeError)],
)  # fmt: skip
async def test_no_module_and_no_half_name_can_be_trusted(trusted: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="trusted"):
        await loads(await dumps(1), trusted=trusted)


def hand_made(*opcodes: bytes) -> bytes:
    return b"\x80\x04" + b"".join(opcodes) + b"."


def named(module: str, name: str) -> bytes:
    def text(value: str) -> bytes:
        return b"\x8c" + bytes([len(value)]) + value.encode()

    return text(module) + text(name) + b"\x93"


# Pickles that ask for more than data. Whatever they would do, it shows as a file called "owned".
OWN = b"\x8c\x0btouch owned\x85"
RANGE = named("builtins", "range") + b"J\xff\xff\xff\x7f\x85R"
HOSTILE: dict[str, bytes] = {
    "a call of os.system": pickle.dumps(Calls(os.system, "touch owned")),
    "eval": pickle.dumps(Calls(eval, "open('owned', 'w')")),
    "exec": pickle.dumps(Calls(exec, "open('owned', 'w')")),
    "open": pickle.dumps(Calls(open, "owned", "w")),
    "getattr": hand_made(named("builtins", "getattr")),
    "a method of plain data": pickle.dumps(Calls(getattr, str, "format")),
    "a method of what is not trusted": pickle.dumps(Calls(getattr, subprocess.Popen, "kill")),
    "an attribute of a type": hand_made(
        named("builtins", "getattr"), named("builtins", "object"), b"\x8c\x0e__subclasses__\x86R)R"
    ),
    "an attribute of an attribute": hand_made(
        named("builtins", "getattr"), b"\x94", named("zoneinfo", "ZoneInfo"), b"\x8c\x09_unpickle\x86R",
        b"0h\x00h\x00", named("zoneinfo", "ZoneInfo"), b"\x8c\x09_unpickle\x86R\x8c\x08__self__\x86R"
    ),
    "an attribute by another name": hand_made(
        named("builtins", "getattr"), named("zoneinfo", "ZoneInfo"), b"\x8c\x12_unpickle.__self__\x86R"
    ),
    "attributes without end": hand_made(
        named("builtins", "getattr"), b"\x940" + b"h\x00" * 30_000, named("zoneinfo", "ZoneInfo"),
        b"\x8c\x09_unpickle\x86R" * 30_000,
    ),
    "the state of getattr": hand_made(
        named("builtins", "getattr"), b"\x94N}\x8c\x0c__defaults__)s\x86b0",
        b"h\x00", named("zoneinfo", "ZoneInfo"), b"\x8c\x09_unpickle\x86R"
    ),
    "an import": pickle.dumps(Calls(__import__, "antigravity")),
    "a process": pickle.dumps(Calls(subprocess.Popen, ["touch", "owned"])),
    "a partial": pickle.dumps(functools.partial(os.system, "touch owned")),
    "a function by value": __import__("cloudpickle").dumps(lambda: 1),
    "a dotted name": hand_made(named("numpy", "os.system"), OWN, b"R"),
    "a dotted name in a trusted module": hand_made(named("collections", "abc.sys.modules"), b"0N"),
    "a module that numpy imports": hand_made(named("numpy", "os")),
    "a module's function below numpy": hand_made(named("numpy.f2py.crackfortran", "myeval"), b"(\x8c\x011tR"),
    "numpy's runner of strings": hand_made(named("numpy.testing._private.utils", "runstring"), b"(\x8c\x011}tR"),
    "an old opcode GLOBAL": b"\x80\x02cos\nsystem\nX\x0b\x00\x00\x00touch owned\x85R.",
    "an old opcode INST": b"\x80\x02(X\x0b\x00\x00\x00touch ownedios\nsystem\n.",
    "an old opcode OBJ": b"\x80\x02(cos\nsystem\nX\x0b\x00\x00\x00touch ownedo.",
    "a name out of the memo": hand_made(
        b"\x8c\x05posix\x94\x8c\x06system\x94", b"00", b"h\x00h\x01\x93", OWN, b"R"
    ),
    "a name that was computed": hand_made(
        named("collections", "deque"), b")R\x8c\x06system\x93"
    ),
    "an extension of copyreg": hand_made(b"\x82\x01"),
    "a persistent object": hand_made(b"K\x01Q"),
    "the state of a type": hand_made(named("numpy", "ndarray"), b"N}\x8c\x01aK\x01s\x86b"),
    "the state of a type in the memo": hand_made(named("numpy", "float64"), b"\x940h\x00N}\x8c\x01aK\x01s\x86b"),
    "the state of a function": hand_made(named("aparallel._persist.arrays", "array"), b"N}\x8c\x01aK\x01s\x86b"),
    "items of a type": hand_made(named("collections", "OrderedDict"), b"\x8c\x01aK\x01s"),
    "a list of a range": hand_made(named("builtins", "list"), RANGE, b"\x85R"),
    "a set of a range": hand_made(named("builtins", "set"), RANGE, b"\x85R"),
    "a call of two texts": hand_made(b"\x8c\x13numpy._core.numeric\x8c\x0b_frombuffer\x86", b")R"),
    "a deque of a range": hand_made(named("collections", "deque"), RANGE, b"\x85R"),
    "gigabytes of zeros": hand_made(named("builtins", "bytearray"), b"J\xff\xff\xff\x7f\x85R"),
    "a huge fraction": hand_made(named("fractions", "Fraction"), b"\x8c\x0b1e999999999\x85R"),
    "a huge array": hand_made(named("numpy._core.multiarray", "_reconstruct"), named("numpy", "ndarray"),
                              b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85C\x01b\x87R"),
    "a call of ndarray": hand_made(named("numpy", "ndarray"), b"J\xff\xff\xff\x7f\x85\x85R"),
    "a codec that is not latin1": hand_made(named("_codecs", "encode"), b"\x8c\x01a\x8c\x03rot\x86R"),
    "a call of what was made": hand_made(named("collections", "defaultdict"), b")R)R"),
    "a dtype that is changed after its use": hand_made(
        named("numpy", "dtype"), b"\x8c\x02V8\x89\x88\x87R\x940",
        named("aparallel._persist.arrays", "array"), b"(C\x08aaaaaaaah\x00K\x01\x85\x8c\x01CtR0",
        b"h\x00(K\x03\x8c\x01|NNNM\xff\xffK\x01K\x00tb",
    ),
    "a dtype with a second state": hand_made(
        named("numpy", "dtype"), b"\x8c\x02V8\x89\x88\x87R(K\x03\x8c\x01|NNNK\x08K\x01K\x00tb",
        b"(K\x03\x8c\x01|NNNM\xff\xffK\x01K\x00tb",
    ),
    "fields that are changed after the check": hand_made(
        b"}2", named("numpy", "dtype"), b"\x8c\x02V8\x89\x88\x87R0", b"\x8c\x01aK\x01s"
    ),
    "a builtin dtype that is changed": hand_made(
        named("numpy", "dtype"), b"\x8c\x02f8\x89\x89\x87R(K\x03\x8c\x01>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
async def test_what_asks_for_more_than_data_is_refused_and_does_nothing(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    modules = set(sys.modules)
    with pytest.raises(UntrustedTypeError, match="Nothing of it has run"):
        await loads(HOSTILE[name], trusted=[])
    assert list(tmp_path.iterdir()) == []
    ours = ("aparallel", "numpy", "pick", "xxhash")
    assert not {module for module in set(sys.modules) - modules if not module.startswith(ours)}
    assert np.dtype("f8") == np.dtype("<f8")


async def test_namespaces_are_trusted_by_their_class() -> None:
    data = await dumps(types.SimpleNamespace(a=1))
    assert (await inspect(io.BytesIO(data))).untrusted == ("types.SimpleNamespace",)
    assert await loads(data, trusted=[types.SimpleNamespace]) == types.SimpleNamespace(a=1)


async def test_joblib_s_class_for_arrays_is_none_of_ours_in_a_file_of_ours() -> None:
    from aparallel._persist.trust import Trust

    parts: list[bytes] = []
    writer = ContainerWriter(CallableSink(parts.append, Stop()))
    writer.write_pickle([hand_made(named("joblib.numpy_pickle", "NumpyArrayWrapper"), b")\x81")])
    writer.finish()
    data = b"".join(parts)
    assert (await inspect(io.BytesIO(data))).untrusted == ("joblib.numpy_pickle.NumpyArrayWrapper",)
    with pytest.raises(UntrustedTypeError, match="Nothing of it has run"):
        await loads(data, trusted=[])
    with pytest.raises(UntrustedTypeError):
        Trust(()).resolve("joblib.numpy_pickle", "NumpyArrayWrapper")


async def test_a_deque_of_a_set_is_data() -> None:
    data = hand_made(named("collections", "deque"), b"\x8f(K\x01\x90K\x05\x86R")
    assert await loads(data, trusted=[]) == collections.deque([1], 5)


@pytest.mark.parametrize("name", HOSTILE)
async def test_the_second_line_of_defence_refuses_every_name_by_itself(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the walk had overlooked everything."""
    from aparallel._persist.trust import Trust

    monkeypatch.chdir(tmp_path)
    trust = Trust(())
    for module, name_ in _names_in(HOSTILE[name]):
        if not _is_trusted_as_a_value(module, name_):
            with pytest.raises(UntrustedTypeError):
                trust.resolve(module, name_)
    assert list(tmp_path.iterdir()) == []


def _names_in(data: bytes) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    texts: list[str] = []
    for opcode, argument, _ in pickletools.genops(data):
        if isinstance(argument, str) and "UNICODE" in opcode.name:
            texts.append(argument)
        elif opcode.name == "STACK_GLOBAL" and len(texts) > 1:
            found.append((texts[-2], texts[-1]))
        elif opcode.name in ("GLOBAL", "INST"):
            module, _, name = str(argument).partition(" ")
            found.append((module, name))
    return found


def _is_trusted_as_a_value(module: str, name: str) -> bool:
    from aparallel._persist.plain_data import DATA, Global

    return Global(module, name) in DATA


async def test_all_that_was_asked_for_is_listed_and_nothing_trusted_runs_before() -> None:
    data = await dumps([Noting(), Calls(os.system, "true"), Calls(os.getcwd)])
    with pytest.raises(UntrustedTypeError) as caught:
        await loads(data, trusted=[Noting])
    assert caught.value.names == (f"{os.system.__module__}.system", f"{os.getcwd.__module__}.getcwd")
    assert ran == []
    await loads(await dumps(Noting()), trusted=[Noting])
    assert ran == ["state"]


async def test_a_name_that_means_something_of_another_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import persisted

    monkeypatch.setattr(persisted, "helper", os.system, raising=False)
    data = hand_made(named("persisted", "helper"), b"\x8c\x04true\x85R")
    with pytest.raises(UntrustedTypeError, match="under another name"):
        await loads(data, trusted=["persisted.helper"])
    with pytest.raises(UntrustedTypeError):
        await loads(data, trusted=[Point])


async def test_a_type_under_an_old_name_is_trusted_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    import persisted

    monkeypatch.setattr(persisted, "OldPoint", Point, raising=False)
    assert await loads(hand_made(named("persisted", "OldPoint")), trusted=[Point]) is Point


DTYPES = ["f8", ">f8", "S5", "U5", "M8[ns]", "m8[25s]", ">M8[D]", "M8", "?", "V7", "O", "g",
          np.dtype([("a", "i4"), ("b", "f8")]),
          np.dtype([("a", "i1"), ("b", "O")], align=True), np.dtype(("f8", (3,))), np.dtype((np.record, [("a", "i4")])),
          np.dtype([(("title", "a"), "i4")]), np.dtype([("x", "f8", (2, 2)), ("y", [("z", "U3")])])]  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
async def test_every_dtype_is_trusted(dtype: Any, protocol: int) -> None:
    dtype = np.dtype(dtype)
    found = await loads(pickle.dumps([dtype, dtype], protocol), trusted=[])
    assert found[0] == dtype
    assert found[0].__reduce__() == dtype.__reduce__()


@pytest.mark.skipif(not hasattr(getattr(np, "dtypes", None), "StringDType"), reason="NumPy 2 has it")
@pytest.mark.parametrize(
    "options", [{}, {"coerce": False}, {"na_object": np.nan}, {"na_object": None}, {"na_object": ""}], ids=str
)
async def test_texts_of_any_length_are_trusted_as_far_as_they_are_all_there(options: Any) -> None:
    kind = np.dtypes.StringDType(**options)
    array = np.array(["a", "b" * 100, ""], kind)
    found = await loads(await dumps([array, kind, array]), trusted=[])
    assert found[0] is found[2]
    assert found[0].dtype == found[1] == kind
    assert_same(found[0], array)
    # NumPy takes as many as the shape says, whatever follows them in memory.
    lying = pickle.dumps(array).replace(b"K\x01K\x03\x85", b"K\x01K\x04\x85")
    with pytest.raises(UntrustedTypeError, match="state of an array"):
        await loads(lying, trusted=[])


@pytest.mark.parametrize(
    "state",
    [
        (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0),  # says that it holds no objects
        (3, "|", None, ("a",), {"a": (np.dtype("f8"), 100)}, 8, 1, 16),  # a field outside of the item
        (3, "|", None, ("a",), {"a": (np.dtype("f8"), -8)}, 8, 1, 16),
        (3, "|", None, ("a",), {"a": (np.dtype("O"), (1 << 31) - 1)}, 8, 1, 27),  # its end, in 32 bits, is negative
        (3, "|", None, ("a", "b"), {"a": (np.dtype("f8"), 0)}, 8, 1, 16),
        (3, "|", None, None, None, 1 << 40, 1, 0),
        (3, "|", (np.dtype("f8"), (3,)), None, None, 8, 8, 0),  # a subarray larger than the item
        (3, "|", None, None, None, 8, 1, 63),  # bytes that say they are objects
        (9, "|", None, None, None, 8, 1, 0),
        (3, "|", None, None, {"a": (np.dtype("O"), 0)}, 8, 1, 0),  # fields without names
        (4, "|", None, None, None, 8, 1, 0, [1]),
    ],
)
async def test_a_dtype_that_numpy_would_not_write_is_refused(state: Any) -> None:
    class Lying:
        def __reduce__(self) -> Any:
            return np.dtype, ("V8", False, True), state

    with pytest.raises(UntrustedTypeError, match=r"numpy\.dtype"):
        await loads(pickle.dumps(Lying()), trusted=[])


@pytest.mark.parametrize("kind", ["f8", "i1", "O8", "S8", "U2"])
@pytest.mark.parametrize("whole", [np.dtype([("a", "f8"), ("b", "f8")]), np.dtype(("f8", (3,)))], ids=str)
async def test_parts_of_what_has_one_value_are_refused(kind: str, whole: Any) -> None:
    class Lying:
        def __reduce__(self) -> Any:
            return np.dtype, (kind, False, True), whole.__reduce__()[2]

    with pytest.raises(UntrustedTypeError, match="one value"):
        await loads(pickle.dumps(Lying()), trusted=[])


# NumPy would divide by the size: a SIGFPE. And it counts 2^64 items as none, and goes through them.
@pytest.mark.parametrize("shape", [(-1,), (1 << 31, 1 << 31, 4)])
async def test_items_without_a_size_that_cannot_be_counted_are_refused(shape: tuple[int, ...]) -> None:
    class Lying:
        def __reduce__(self) -> Any:
            return array, (b"", np.dtype([]), shape, "C")

    with pytest.raises(CorruptFileError):
        await loads(pickle.dumps(Lying()), trusted=[])


async def test_a_matrix_of_three_dimensions_is_refused() -> None:
    class Lying:
        def __reduce__(self) -> Any:
            function, args, state = np.array([[None]], object).view(np.matrix).__reduce__()
            return function, args, (state[0], (1, 1, 1), *state[2:])  # its astype() crashes

    with pytest.raises(UntrustedTypeError, match="state of an array"):
        await loads(pickle.dumps(Lying()), trusted=[])
    flat = np.array([[None, 1]], object).view(np.matrix)
    assert (await loads(pickle.dumps(flat), trusted=[])).tolist() == flat.tolist()


async def test_a_scalar_that_has_a_shape_is_refused() -> None:
    class Lying:
        def __reduce__(self) -> Any:
            return np.float64(1).__reduce__()[0], (np.dtype(("f8", (3,))), bytes(24))  # its copy() crashes

    with pytest.raises(UntrustedTypeError, match="scalar"):
        await loads(pickle.dumps(Lying()), trusted=[])


async def test_a_masked_array_with_a_list_to_fill_in_is_damage() -> None:
    class Lying:
        def __reduce__(self) -> Any:
            function, args, state = np.ma.masked_array([1.0, 2.0], [0, 1]).__reduce__()
            return function, args, (*state[:-1], ["x"])

    with pytest.raises(CorruptFileError):
        await loads(pickle.dumps(Lying()), trusted=[])


async def test_masked_arrays_of_objects_are_plain_data() -> None:
    flat = np.ma.masked_array(np.array([1, None, "x"], object), [0, 1, 0])
    filled = np.ma.masked_array(np.array([[1, [2]], [3, {}]], object, order="F"), [[0, 1], [0, 0]], fill_value=-1)
    records = np.ma.masked_array(np.array([(1, None), (2, "x")], [("a", "i4"), ("b", object)]), [(0, 1), (1, 0)])
    for expected in (flat, filled, records):
        for data in (await dumps(expected), pickle.dumps(expected, 2), pickle.dumps(expected, 0)):
            found = await loads(data, trusted=[])
            assert found.tolist() == expected.tolist()
            assert found.mask.tolist() == expected.mask.tolist()
            assert str(found.fill_value) == str(expected.fill_value)
            info = await inspect(io.BytesIO(data))
            assert info.untrusted == ()
            assert (expected.shape, expected.dtype.itemsize * expected.size) in {
                (a.shape, a.nbytes) for a in info.arrays
            }


async def test_a_masked_array_of_objects_with_a_list_to_fill_in_is_refused() -> None:
    function, args, state = np.ma.masked_array(np.array([None], object)).__reduce__()  # type: ignore[misc]

    class Lying:
        def __reduce__(self) -> Any:
            return function, args, (*state[:-1], [1, 2])  # type: ignore[index]

    with pytest.raises(UntrustedTypeError, match="state of an array that NumPy would not write"):
        await loads(pickle.dumps(Lying()), trusted=[])


async def test_a_mask_that_does_not_fit_is_damage() -> None:
    class Lying:
        def __reduce__(self) -> Any:
            return masked_array, (np.arange(2.0), np.array([True, False, True]), None)

    with pytest.raises(CorruptFileError):
        await loads(await dumps(Lying()), trusted=[])


@pytest.mark.parametrize(
    "kind",
    [
        np.dtype("i1", metadata={"enum": {"FALSE": 0, "TRUE": 1}}),  # as h5py says what is in a file
        np.dtype("O", metadata={"vlen": str}),
        np.dtype([("a", ">i4"), ("b", np.dtype("O", metadata={"vlen": bytes}))], metadata={"unit": "m"}),
        np.dtype("M8[ns]", metadata={"zone": "UTC"}),
    ],
)
async def test_metadata_of_data_types_is_plain_data(kind: np.dtype[Any]) -> None:
    for data in (await dumps(np.zeros(3, kind)), *(pickle.dumps(np.zeros(3, kind), protocol) for protocol in range(5))):
        trusting, trusted = await loads(data), await loads(data, trusted=[])
        assert trusted.dtype.metadata == trusting.dtype.metadata == kind.metadata
        assert (await inspect(io.BytesIO(data))).untrusted == ()


@pytest.mark.parametrize("metadata", [None, "x", collections.OrderedDict(a=1)])
async def test_metadata_that_is_no_dictionary_is_refused(metadata: Any) -> None:
    class Lying:
        def __reduce__(self) -> Any:
            return np.dtype, ("i1", False, True), (4, "|", None, None, None, -1, -1, 0, metadata)

    with pytest.raises(UntrustedTypeError, match="metadata that is no dictionary"):
        await loads(pickle.dumps(Lying()), trusted=[])


async def test_a_date_without_a_unit_is_refused() -> None:
    class Lying:
        def __reduce__(self) -> Any:
            return np.dtype, ("m8", False, True), (3, "<", None, None, None, -1, -1, 0)

    with pytest.raises(UntrustedTypeError, match="no unit of time"):
        await loads(pickle.dumps(Lying()), trusted=[])


async def test_an_array_that_numpy_would_not_write_is_refused() -> None:
    class Lying:
        def __init__(self, shape: Any, dtype: Any, data: Any) -> None:
            self.parts = shape, dtype, data

        def __reduce__(self) -> Any:
            function, args, _ = np.arange(2).__reduce__()[:3]
            shape, dtype, data = self.parts
            return function, args, (1, shape, dtype, False, data)

    for parts in (
        ((2,), np.dtype("O"), b"12345678" * 2),
        ((1 << 40,), np.dtype("O"), [1]),
        ((98,), np.dtype("O"), [1, 2]),
        (("x",), np.dtype("f8"), b""),
        ((1,), np.dtype(("f8", (3,))), bytes(24)),  # an item of it crashes
        ((1 << 31, 1 << 31, 4), np.dtype([]), b""),  # of which NumPy counts none
        ((sys.maxsize,), np.dtype("f2"), b""),  # for which NumPy says that there is no memory
        ((0, sys.maxsize), np.dtype("f2"), b""),
    ):
        with pytest.raises(UntrustedTypeError):
            await loads(pickle.dumps(Lying(*parts)), trusted=[])
    with pytest.raises(ValueError, match="size"):
        await loads(pickle.dumps(Lying((1 << 40,), np.dtype("f8"), b"12345678")), trusted=[])


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04" + b"(" * 60_000 + b".",
        b"\x80\x04" + b"]" * 60_000 + b"b\x00",
        b"\x80\x04Nr\xff\xff\xff\xff.",
        b"\x80\x04Np4000000000\n.",
        b"\x80\x04\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\x00\x00.",
        b"\x80\x04c" + b"a" * 3_000_000,
        b"\x80\x04" + b"t.",
        b"\x80\x04" + b"0.",
        b"\x80\x04N\x94q\x05.",
        b"\x80\x04\x95\x03" + bytes(7) + b"N0\x8c\x05abcde.",
        b"\x80\x04\x95\x20" + bytes(7) + b"\x95\x01" + bytes(7) + b"N." + bytes(20),
        b"\x80\x04\x95\x20" + bytes(7) + b"N." + bytes(40),
    ],
    ids=[
        "marks",
        "lists",
        "memo",
        "memo as text",
        "bytearray",
        "bytes",
        "line",
        "no mark",
        "nothing",
        "two memos",
        "torn frame",
        "nested frames",
        "endless frame",
    ],
)
@pytest.mark.parametrize("use", ["load", "inspect"])
async def test_depth_and_sizes_that_no_pickler_makes_take_no_memory(data: bytes, use: str) -> None:
    import tracemalloc

    tracemalloc.start()
    try:
        with pytest.raises((CorruptFileError, UntrustedTypeError)):
            await (loads(data, trusted=[]) if use == "load" else inspect(io.BytesIO(data)))
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


DEEP = b")" + b"\x85" * 25_000
DEEP_BY_MEMO = b")\x94" + b"".join(b"0j%b\x85\x94" % number.to_bytes(4, "little") for number in range(25_000))


TOO_DEEP = {
    "key": b"\x80\x04}" + DEEP + b"Ns.",
    "set": b"\x80\x04\x8f(" + DEEP + b"\x90.",
    "frozenset": b"\x80\x04(" + DEEP + b"\x91.",
    "marks": b"\x80\x04}" + b"(" * 25_000 + b"t" * 25_000 + b"Ns.",
    "memo": b"\x80\x04" + DEEP_BY_MEMO + b"}(j\xa8\x61\x00\x00Nu.",
    "numbered memo": b"\x80\x03)q\x00" + b"0h\x00\x85q\x00" * 25_000 + b"0}h\x00Ns.",
    "protocol 0": b"}" + b"(" * 25_000 + b"t" * 25_000 + b"Ns.",
    "names": b"\x80\x04}" + DEEP + b"Nscdatetime\ndate\nK\x01K\x01K\x01\x87R\x86.",
    "call": b"\x80\x04cbuiltins\nset\n]" + DEEP + b"a\x85R.",
    "extension": b"\x80\x04}" + DEEP + b"Ns\x82\x01.",
    "slices": b"\x80\x04cbuiltins\nslice\n\x940" + b"(h\x00" * 25_000 + b"N" + b"o" * 25_000 + b".",
    "dtype": b"\x80\x04cnumpy\ndtype\n\x8c\x02V8\x89\x88\x87R(K\x03\x8c\x01|N" + DEEP + b"\x85}K\x08K\x01K\x10tb.",
}


@pytest.mark.parametrize("name", TOO_DEEP)
async def test_tuples_that_are_too_deep_for_python_are_refused_and_not_hashed(name: str) -> None:
    with pytest.raises(UntrustedTypeError, match="nested more than 20,000 levels deep"):
        await loads(TOO_DEEP[name], trusted=[])
    await inspect(io.BytesIO(TOO_DEEP[name]))


def memo(index: int) -> bytes:
    return b"j" + index.to_bytes(4, "little")


# The memo's first entries: how arrays are made, and the data types of those of objects, with and without fields.
OBJECTS = (
    b"cnumpy.core.multiarray\n_reconstruct\n\x940cnumpy\nndarray\n\x940"
    b"cnumpy\ndtype\n\x8c\x02O8\x89\x88\x87R(K\x03\x8c\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb\x940"
)
RECORDS = (
    b"cnumpy\ndtype\n\x8c\x02V8\x89\x88\x87R"
    b"(K\x03\x8c\x01|N\x8c\x01a\x85}\x8c\x01ah\x02K\x00\x86sK\x08K\x01K\x1btb\x940"
)
ARRAY = b"h\x00h\x01K\x00\x85C\x01b\x87R"
HOLDING = b"(K\x01K\x01\x85h\x02\x89]"
SCALAR = HOLDING.replace(b"K\x01\x85", b")")
MASKS = b"cnumpy.ma.core\n_mareconstruct\n\x940cnumpy.ma\nMaskedArray\n\x940"
MASKED = b"h\x03(h\x04h\x01K\x00\x85C\x01btR"
DEQUE, DICT = b"ccollections\ndeque\n\x940", b"ccollections\ndefaultdict\n\x940"

CHAINS = {
    "arrays": lambda n: OBJECTS + (ARRAY + HOLDING) * n + b"N" + b"atb" * n,
    "arrays by memo": lambda n: (
        OBJECTS + b"".join(ARRAY + HOLDING + memo(2 + i) + b"atb\x940" for i in range(n)) + memo(2 + n)
    ),
    "arrays from without": lambda n: (
        OBJECTS
        + ARRAY
        + b"\x94"
        + b"".join(ARRAY + b"\x940" + memo(3 + i) + HOLDING + memo(4 + i) + b"atb0" for i in range(n))
    ),
    "records": lambda n: OBJECTS + RECORDS + (ARRAY + HOLDING.replace(b"\x02", b"\x03")) * n + b"N" + b"\x85atb" * n,
    "masked arrays": lambda n: OBJECTS + MASKS + (MASKED + HOLDING) * n + b"N" + b"aC\x01\x00Ntb" * n,
    "fill values": lambda n: OBJECTS + MASKS + (MASKED + SCALAR + b"NaC\x01\x00") * n + b"N" + b"tb" * n,
    "deques": lambda n: DEQUE + b"h\x00)R" * n + b"a" * (n - 1),
    "deques of lists": lambda n: DEQUE + b"h\x00]" * n + b"N" + b"a\x85R" * n,
    "deques of tuples": lambda n: DEQUE + b"h\x00" * n + b"N" + b"\x85\x85R" * n,
    "dictionaries": lambda n: DICT + b"h\x00)RK\x01" * n + b"N" + b"s" * n,
    "dictionaries from without": lambda n: (
        DICT + b"h\x00)R\x94" + b"".join(memo(1 + i) + b"K\x01h\x00)R\x94s0" for i in range(n))
    ),
    "arrays and dictionaries": lambda n: OBJECTS + DICT + (ARRAY + HOLDING + b"h\x03)RK\x01") * n + b"N" + b"satb" * n,
}


@pytest.mark.parametrize("name", CHAINS)
async def test_chains_of_what_is_freed_at_once_are_refused_if_they_are_long(name: str) -> None:
    assert pickle.loads(b"\x80\x04" + CHAINS[name](3) + b".") is not None
    assert await loads(b"\x80\x04" + CHAINS[name](20) + b".", trusted=[]) is not None
    length = 21_000 if name.startswith("d") else 1_300
    for before in (b"", b"\x82\x010"):  # the walk judges, too
        with pytest.raises(UntrustedTypeError, match=r"hold each other in a chain so long|levels deep"):
            await loads(b"\x80\x04" + before + CHAINS[name](length) + b".", trusted=[])


def dtype_of_fields(levels: int) -> bytes:
    head = b"cnumpy\ndtype\n\x8c\x02V8\x89\x88\x87R(K\x03\x8c\x01|N\x8c\x01a\x85}\x8c\x01a"
    inner = b"cnumpy\ndtype\n\x8c\x02f8\x89\x88\x87R(K\x03\x8c\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return head * levels + inner + b"K\x00\x86sK\x08K\x01K\x10tb" * levels


async def test_data_types_of_many_levels_are_refused() -> None:
    expected: Any = np.dtype("f8")
    for _ in range(20):
        expected = np.dtype([("a", expected)])
    assert await loads(b"\x80\x04" + dtype_of_fields(20) + b".", trusted=[]) == expected
    # With 100,000 levels, to compare two kills the process.
    data = b"\x80\x04}(" + (dtype_of_fields(1_000) + b"N") * 2 + b"u."
    with pytest.raises(UntrustedTypeError, match="levels of fields within fields"):
        await loads(data, trusted=[])
    assert (await inspect(io.BytesIO(data))).untrusted == ("numpy.dtype",)


async def test_pickles_within_pickles_have_an_end() -> None:
    wrapper = (
        b"\x80\x03cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81}(X\x05\x00\x00\x00shapeK\x01\x85"
        b"X\x05\x00\x00\x00dtypecnumpy\ndtype\nX\x02\x00\x00\x00O8\x89\x88\x87R"
        b"(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftbub"
    )
    data = wrapper * 3_000 + b"\x80\x03N." + b"." * 3_000
    for use in (lambda: loads(data, trusted=[]), lambda: inspect(io.BytesIO(data))):
        with pytest.raises(CorruptFileError, match="pickles within pickles"):
            await use()


async def test_a_long_chain_of_calls_is_judged_in_time() -> None:
    data = b"\x80\x04cbuiltins\nobject\n" + b")R" * 30_000 + b"."
    started = time.perf_counter()
    with pytest.raises(UntrustedTypeError, match=r"what builtins\.object gave"):
        await loads(data, trusted=[])
    await inspect(io.BytesIO(data))
    assert time.perf_counter() - started < 5  # it was 12 when each call looked at all before it


async def test_many_collections_that_hold_few_others_are_no_chain() -> None:
    deques = [collections.deque([collections.deque([number])]) for number in range(21_000)]
    arrays_ = np.empty(1_300, object)
    arrays_[:] = [np.array([None], object) for _ in range(1_300)]
    tree = collections.defaultdict(dict, {n: collections.defaultdict(list, {1: [n]}) for n in range(21_000)})  # type: ignore[arg-type]
    for data in (await dumps([deques, arrays_, tree]), pickle.dumps([deques, arrays_, tree], 2)):
        found = await loads(data, trusted=[])
        assert found[0] == deques
        assert found[2] == tree


@pytest.mark.parametrize("levels", [12_000, 19_990])
async def test_tuples_as_deep_as_may_be_are_loaded(levels: int) -> None:
    deep = b")" + b"\x85" * levels
    for data in (b"\x80\x04}" + deep + b"Ns.", b"\x80\x04}" + deep + b"Nscdatetime\ndate\n0."):
        found = next(iter(await loads(data, trusted=[])))
        for _ in range(levels):
            (found,) = found
        assert found == ()


async def test_names_that_come_late_in_a_long_file_are_still_told() -> None:
    texts = [f"text{number}" for number in range(80_000)]
    data = await dumps([texts, Point(1, 2), twice, Point(3, 4), [np.arange(2), np.arange(3)]])
    found = await loads(data, trusted=[Point, twice])
    assert found[1:4] == [Point(1, 2), twice, Point(3, 4)]
    with pytest.raises(UntrustedTypeError) as caught:
        await loads(data, trusted=[])
    assert caught.value.names == ("persisted.Point", "persisted.twice")


async def test_inspect_builds_nothing_and_tells_everything(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    obj = [
        Noting(),
        np.zeros((3, 4), "f4"),
        np.asfortranarray(np.ones((2, 2))),
        collections.Counter("ab"),
        Calls(os.getcwd),
    ]
    for compress in (None, "zlib"):
        size = await aparallel.dump(obj, path, compress=compress, signing_key="key")
        info = await inspect(path)
        assert ran == []
        assert (info.format, info.version, info.size) == ("aparallel", 1, size)
        assert (info.compression, info.mappable, info.signed) == (compress, compress is None, True)
        assert [(array.shape, array.dtype, array.nbytes) for array in info.arrays] == [
            ((3, 4), "<f4", 48),
            ((2, 2), "<f8", 32),
        ]
        assert info.untrusted == (f"{__name__}.Noting", f"{os.getcwd.__module__}.getcwd")
        assert set(info.untrusted) < set(info.types)
        assert info.content_size > 80


@pytest.mark.parametrize("name", HOSTILE)
async def test_inspect_objects_to_all_that_trust_in_data_alone_refuses(name: str) -> None:
    with pytest.raises(UntrustedTypeError) as caught:
        await loads(HOSTILE[name], trusted=[])
    info = await inspect(io.BytesIO(HOSTILE[name]))
    assert info.untrusted == caught.value.names
    assert all(why in str(caught.value) for why in info.objections)
    assert info.untrusted or info.objections


async def test_inspect_takes_every_kind_of_source(tmp_path: pathlib.Path) -> None:
    data = await dumps(np.arange(100_000.0))

    async def chunks() -> Any:
        for start in range(0, len(data), 5000):
            yield data[start : start + 5000]

    expected = await inspect(io.BytesIO(data))
    assert await inspect(chunks()) == expected
    (tmp_path / "file").write_bytes(data)
    assert await inspect(tmp_path / "file") == expected


async def test_the_walk_sees_what_the_standard_library_sees() -> None:
    from aparallel._ground.stoppable import Stop
    from aparallel._persist.guard import Survey
    from aparallel._persist.walk import walk

    for protocol in (2, 3, 4, 5):
        data = pickle.dumps([plain(), arrays(), Point(1, 2), twice, [Point(3, 4)] * 3], protocol)
        seen: list[str] = []

        class Recording(pickle._Unpickler):  # type: ignore[name-defined, misc]
            def find_class(self, module: str, name: str) -> Any:
                seen.append(f"{module}.{name}")  # noqa: B023
                return super().find_class(module, name)

        Recording(io.BytesIO(data)).load()
        survey = Survey()
        walk(io.BytesIO(data).read, survey, Stop())
        assert list(map(str, survey.globals)) == list(dict.fromkeys(seen))


async def test_data_that_does_not_fit_together_is_damage_unless_something_else_may_have_said_so() -> None:
    data = pickle.dumps([decimal.Decimal("1.5"), dt.date(2000, 1, 2)], 4)
    for damaged in (data.replace(b"1.5", b"1.x"), data.replace(b"\x01\x02", b"\xff\x02")):
        assert damaged != data
        with pytest.raises(CorruptFileError, match="its pickle is damaged"):
            await loads(damaged, trusted=[])
    beyond_unicode = pickle.dumps(np.str_("x"), 4).replace(b"x\0\0\0", b"x\0\0\xad")  # a SystemError of NumPy's
    with pytest.raises(CorruptFileError, match="its pickle is damaged"):
        await loads(beyond_unicode, trusted=[])
    flat = pickle.dumps(np.array([None], object), 4)
    with pytest.raises(CorruptFileError, match="dimensions"):  # a RuntimeError of NumPy's
        await loads(flat.replace(b"K\x01\x85", b"(" + b"K\x01" * 33 + b"t"), trusted=[])
    deep = b")" + b"\x85" * 15_000 + b"N"
    compared = b"\x80\x04}(" + deep + deep + b"u."
    if sys.version_info < (3, 14):
        with pytest.raises(CorruptFileError, match="recursion"):
            await loads(compared, trusted=[])
    else:  # the limit is the stack's
        assert len(await loads(compared, trusted=[])) == 1
    with pytest.raises(decimal.InvalidOperation):
        await loads(data.replace(b"1.5", b"1.x"), trusted=[os.getcwd])
