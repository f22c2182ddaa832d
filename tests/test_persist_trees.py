"""Large plain data of which little occurs twice is dumped without the pickler's memo, and comes back the same."""

from __future__ import annotations

import json
import pickle
import pickletools
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aparallel import dumps, loads
from aparallel._ground.stoppable import Stop, Stopped
from aparallel._persist import trees
from aparallel._persist.dump import dump_to_bytes
from aparallel._persist.load import load_from_bytes
from aparallel._persist.options import DumpOptions, LoadOptions
from aparallel._persist.pickling import write_object
from aparallel._persist.trees import shared_leaves

MANY = trees._MANY


@pytest.fixture(params=[2_000, pytest.param(MANY, marks=pytest.mark.soak)])
def many(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many parts make data large, here."""
    monkeypatch.setattr(trees, "_MANY", request.param)
    return int(request.param)


def users(count: int) -> list[dict[str, Any]]:
    return [{"id": number, "name": f"user{number}", "tags": [f"t{number}"]} for number in range(count)]


def graph_of(obj: Any) -> Any:
    """*obj* with a number in place of each container that was met before."""
    numbers: dict[int, int] = {}

    def seen(part: Any) -> Any:
        if not isinstance(part, (list, dict, tuple, set, frozenset)):
            return type(part), part
        if id(part) in numbers and part != ():
            return numbers[id(part)]
        numbers[id(part)] = len(numbers)
        if isinstance(part, dict):
            return dict, [(seen(key), seen(value)) for key, value in part.items()]
        if isinstance(part, (set, frozenset)):
            return type(part), sorted(map(repr, part))
        return type(part), [seen(item) for item in part]

    return seen(obj)


class Pieces:
    """Takes what a container's writer would."""

    def __init__(self) -> None:
        self.pickle = b""

    def write_pickle(self, pieces: Any) -> None:
        self.pickle += b"".join(pieces)


def pickled(obj: Any) -> bytes:
    pieces: Any = Pieces()
    write_object(obj, pieces, Stop(), compressed=False)
    return pieces.pickle  # type: ignore[no-any-return]


def memo_entries(data: bytes) -> int:
    return sum(opcode.name == "MEMOIZE" for opcode, _, _ in pickletools.genops(data))


@pytest.mark.parametrize("make", [users, lambda n: {f"k{i}": (i, b"%d" % i) for i in range(n)}], ids=["list", "dict"])
def test_a_large_tree_is_one_pickle_that_remembers_only_what_is_shared(make: Any) -> None:
    obj = make(MANY)
    data = pickled(obj)
    assert memo_entries(data) < 20  # texts of one byte are shared by all
    assert len(data) < len(pickle.dumps(obj, 5))
    assert pickle.loads(data) == obj


def test_texts_that_occur_often_are_written_once_and_are_one_object_again() -> None:
    rows = json.loads(json.dumps(users(MANY)))
    kind = "a kind of user"
    for row in rows:
        row["kind"] = kind
    data = pickled(rows)
    assert data.count(b"a kind of user") == data.count(b"name") == 1
    found = pickle.loads(data)
    assert {id(row["kind"]) for row in found} == {id(found[0]["kind"])}
    assert len({id(key) for row in found for key in row}) == 4


def shares_a_list(rows: Any) -> None:
    rows[1]["tags"] = rows[-1]["tags"]


def is_a_cycle(rows: Any) -> None:
    rows[7]["all"] = rows


def has_a_row_twice(rows: Any) -> None:
    rows[3] = rows[-3]


def shares_a_tuple_deep_down(rows: Any) -> None:
    rows[0]["at"] = [[(1, [2])]]
    rows[-1]["at"] = {"deep": rows[0]["at"][0][0]}


def shares_a_bytearray(rows: Any) -> None:
    rows[0]["raw"] = rows[1]["raw"] = bytearray(b"abc")


@pytest.mark.parametrize(
    "change", [shares_a_list, is_a_cycle, has_a_row_twice, shares_a_tuple_deep_down, shares_a_bytearray]
)
def test_what_is_shared_in_large_data_is_shared_when_loaded(change: Any, many: int) -> None:
    rows = users(many)
    change(rows)
    assert shared_leaves(rows, Stop()) is None
    assert graph_of(pickle.loads(pickled(rows))) == graph_of(rows)


def test_whoever_else_holds_a_row_does_not_change_what_is_loaded() -> None:
    rows = users(MANY)
    index = {row["id"]: row for row in rows[:3]}
    assert pickle.loads(pickled([rows, index])) == [rows, index]
    assert pickle.loads(pickled(rows)) == rows


def test_keys_that_dictionaries_have_in_common_count_as_shared() -> None:
    class Row:
        def __init__(self, number: int) -> None:
            self.rare_name_of_an_attribute = number

    data = pickled([vars(Row(number)) for number in range(MANY)])
    assert data.count(b"rare_name_of_an_attribute") == 1


def test_large_data_lies_a_level_deeper_too() -> None:
    assert memo_entries(pickled({"version": 1, "users": users(MANY)})) < 10


KINDS: dict[str, Any] = {
    "lists": lambda n: [n],
    "empty lists": lambda n: [],
    "dicts": lambda n: {n: {"a": n}},
    "empty dicts": lambda n: {},
    "tuples": lambda n: (n, str(n)),
    "empty tuples": lambda n: (),
    "sets": lambda n: {n, str(n)},
    "empty sets": lambda n: set(),
    "frozen sets": lambda n: frozenset({n}),
    "nested": lambda n: [[[({"a": [n]},)]]],
    "numbers": lambda n: n * 10**30,
}


@pytest.mark.parametrize("kind", KINDS)
def test_many_of_each_kind_come_back(kind: str, many: int) -> None:
    make = KINDS[kind]
    obj: list[Any] = [make(number) for number in range(many)]
    obj.append([make(number) for number in range(100)])
    data = dump_to_bytes(obj, DumpOptions())
    assert load_from_bytes(data, LoadOptions()) == load_from_bytes(data, LoadOptions(trusted=())) == obj


@pytest.mark.parametrize(
    "obj",
    [users(10), [object()] * 2, list(range(10)), [users(MANY), object()], [{f"{n}": n} for n in range(2 * MANY)], "x"],
    ids=["small", "of other types", "numbers", "one of another type", "of too many keys", "no container"],
)
def test_other_data_is_left_to_the_memo(obj: Any) -> None:
    assert shared_leaves(obj, Stop()) is None


def test_a_survey_stops_when_it_is_told_to() -> None:
    stop = Stop()
    stop.set()
    with pytest.raises(Stopped):
        shared_leaves(users(MANY), stop)


async def test_a_large_tree_is_plain_data_for_those_who_trust_nothing_more() -> None:
    rows = users(MANY)
    assert (
        await loads(await dumps(rows, compress="zstd", signing_key="secret"), trusted=[], signing_key="secret") == rows
    )


@pytest.fixture
def _any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "_MANY", 1)
    monkeypatch.setattr(trees, "_AT_ONCE", 3)


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=4), st.binary(max_size=4)
)


@st.composite
def graphs(draw: st.DrawFn) -> Any:
    """Containers in containers, any of which may occur again, also in itself."""
    nodes: list[Any] = [draw(LEAVES)]
    for _ in range(draw(st.integers(1, 12))):
        parts = [draw(st.sampled_from(nodes) | LEAVES) for _ in range(draw(st.integers(0, 4)))]
        kind = draw(st.sampled_from([list, tuple, dict]))
        nodes.append({draw(st.text(max_size=3)): part for part in parts} if kind is dict else kind(parts))
    if draw(st.booleans()) and (lists := [node for node in nodes if type(node) is list]):
        draw(st.sampled_from(lists)).append(nodes[-1])
    return nodes.pop()


@pytest.mark.usefixtures("_any_size")
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(graphs())
def test_any_graph_of_plain_data_comes_back_with_the_same_references(obj: Any) -> None:
    found = load_from_bytes(dump_to_bytes(obj, DumpOptions()), LoadOptions())
    assert graph_of(found) == graph_of(obj)
