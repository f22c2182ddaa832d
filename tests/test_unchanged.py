"""A witness never says that a function is unchanged when its pickle would differ."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aparallel._transfer.unchanged import Witness

SOURCE = """
import math
number = 1
text = "a"
items = [1]
pair = (1, [2])

def helper():
    return number

def reads_number(x=0):
    return number + x

def calls_helper():
    return helper()

def reads_items():
    return items[0]

def reads_pair():
    return pair

def uses_module():
    return math.pi

def reads_inside():
    return [number for _ in range(1)]

def writes():
    global number
    number += 1

def recursive(n):
    return n and recursive(n - 1)

def closing(value):
    def inner():
        return value
    def set(new):
        nonlocal value
        value = new
    def empty():
        nonlocal value
        del value
    return inner, set, empty
"""


@pytest.fixture
def space() -> dict[str, Any]:
    """The globals of a program whose functions travel by value, fresh for each test."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(SOURCE, namespace)
    return namespace


def is_known_unchanged(fn: FunctionType, change: Callable[[], object]) -> bool:
    witness = Witness.of(fn)
    if witness is None:
        return False
    assert witness.still_holds(), "it must hold while nothing has changed"
    change()
    return witness.still_holds()


@pytest.mark.parametrize("name", ["reads_number", "calls_helper", "uses_module", "reads_inside", "recursive"])
def test_a_function_of_immutable_things_can_be_watched(space: dict[str, Any], name: str) -> None:
    assert is_known_unchanged(space[name], lambda: None)


@pytest.mark.skipif(sys.version_info < (3, 14), reason="annotations are computed when a function is made")
def test_a_function_whose_annotations_cannot_be_told_can_be_watched(space: dict[str, Any]) -> None:
    exec(compile("def annotated(x: Missing) -> Missing: return number", "source", "exec", dont_inherit=True), space)
    fn = space["annotated"]
    assert is_known_unchanged(fn, lambda: None)
    assert not is_known_unchanged(fn, lambda: space.update(number=2))
    assert not is_known_unchanged(fn, lambda: setattr(fn, "__annotations__", {"x": int}))


@pytest.mark.parametrize("name", ["reads_number", "calls_helper", "reads_inside", "writes"])
@pytest.mark.parametrize("value", [2, "other", 1.0, True, None, [1]])
def test_a_changed_global_is_seen(space: dict[str, Any], name: str, value: Any) -> None:
    assert not is_known_unchanged(space[name], lambda: space.update(number=value))


def test_a_global_changed_by_the_function_itself_is_seen(space: dict[str, Any]) -> None:
    assert not is_known_unchanged(space["writes"], space["writes"])


def test_a_deleted_global_is_seen(space: dict[str, Any]) -> None:
    assert not is_known_unchanged(space["reads_number"], lambda: space.pop("number"))


def test_a_global_that_appears_is_seen(space: dict[str, Any]) -> None:
    del space["number"]
    assert not is_known_unchanged(space["reads_number"], lambda: space.update(number=1))


def test_a_global_that_hides_a_builtin_is_seen(space: dict[str, Any]) -> None:
    assert not is_known_unchanged(space["reads_inside"], lambda: space.update(range=lambda n: []))


def test_a_mutated_global_is_seen(space: dict[str, Any]) -> None:
    assert not is_known_unchanged(space["reads_items"], lambda: space["items"].append(2))
    assert not is_known_unchanged(space["reads_pair"], lambda: space["pair"][1].append(2))


def test_a_redefined_helper_is_seen(space: dict[str, Any]) -> None:
    assert not is_known_unchanged(space["calls_helper"], lambda: space.update(helper=lambda: 5))


def test_a_helpers_new_code_is_seen(space: dict[str, Any]) -> None:
    def change() -> None:
        space["helper"].__code__ = space["uses_module"].__code__

    assert not is_known_unchanged(space["calls_helper"], change)


def test_a_replaced_module_is_seen(space: dict[str, Any]) -> None:
    assert not is_known_unchanged(space["uses_module"], lambda: space.update(math=sys))


def test_a_change_in_a_module_that_no_worker_can_import_is_seen(space: dict[str, Any]) -> None:
    module = space["math"] = ModuleType("made_at_run_time")
    module.pi = 3  # type: ignore[attr-defined]
    assert not is_known_unchanged(space["uses_module"], lambda: setattr(module, "pi", 4))


def test_a_change_in_a_module_registered_by_value_is_seen(
    space: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("travels_by_value")
    exec("level = 1\ndef leveled():\n    return level", module.__dict__)
    monkeypatch.setitem(sys.modules, "travels_by_value", module)
    cloudpickle.register_pickle_by_value(module)
    try:
        space["helper"] = module.leveled
        assert not is_known_unchanged(space["calls_helper"], lambda: setattr(module, "level", 2))
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def test_a_changed_cell_is_seen(space: dict[str, Any]) -> None:
    inner, set_value, empty = space["closing"](1)
    assert not is_known_unchanged(inner, lambda: set_value(2))
    inner, set_value, empty = space["closing"](1)
    assert not is_known_unchanged(inner, empty)


def test_an_empty_cell_that_is_filled_is_seen(space: dict[str, Any]) -> None:
    inner, set_value, empty = space["closing"](1)
    empty()
    assert not is_known_unchanged(inner, lambda: set_value(1))


def test_mutated_contents_of_a_cell_are_seen(space: dict[str, Any]) -> None:
    value = [1]
    inner, _, _ = space["closing"](value)
    assert not is_known_unchanged(inner, lambda: value.append(2))


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("__defaults__", (7,)),
        ("__kwdefaults__", {"y": 7}),
        ("__code__", (lambda x=0: 9).__code__),
        ("marked", True),
        ("__name__", "renamed"),
        ("__qualname__", "renamed"),
        ("__doc__", "Documented."),
        ("__module__", "elsewhere"),
        ("__annotations__", {"x": int}),
    ],
)
def test_a_changed_attribute_is_seen(space: dict[str, Any], attribute: str, value: Any) -> None:
    fn = space["reads_number"]
    assert not is_known_unchanged(fn, lambda: setattr(fn, attribute, value))


def test_annotations_mutated_in_place_are_seen(space: dict[str, Any]) -> None:
    fn = space["helper"]
    fn.__annotations__ = {"return": int}
    assert not is_known_unchanged(fn, lambda: fn.__annotations__.update({"return": str}))


def test_a_mutated_default_is_seen(space: dict[str, Any]) -> None:
    fn = space["reads_number"]
    fn.__defaults__ = ([1],)
    assert not is_known_unchanged(fn, lambda: fn.__defaults__[0].append(2))
    fn.__defaults__ = ((1, [2]),)
    assert not is_known_unchanged(fn, lambda: fn.__defaults__[0][1].append(2))


def test_a_callable_with_state_is_never_said_to_be_unchanged(space: dict[str, Any]) -> None:
    class Counter:
        def __init__(self) -> None:
            self.count = 0

        def __call__(self) -> int:
            return self.count

    counter = space["helper"] = Counter()
    assert not is_known_unchanged(space["calls_helper"], lambda: setattr(counter, "count", 1))


def test_a_class_of_main_is_never_said_to_be_unchanged(space: dict[str, Any]) -> None:
    exec("class Local:\n    level = 1\ndef uses_class():\n    return Local.level", space)
    assert not is_known_unchanged(space["uses_class"], lambda: setattr(space["Local"], "level", 2))


def test_values_of_immutable_subclasses_are_not_trusted(space: dict[str, Any]) -> None:
    class Marked(int):
        mark: int

    number = space["number"] = Marked(1)
    number.mark = 1
    assert not is_known_unchanged(space["reads_number"], lambda: setattr(number, "mark", 2))


values = st.one_of(
    st.integers(),
    st.floats(),
    st.text(),
    st.none(),
    st.booleans(),
    st.lists(st.integers()),
    st.tuples(st.integers(), st.lists(st.integers())),
    st.sampled_from([math, math.sin, len, ValueError, math.pi]),
)
steps = st.one_of(
    st.tuples(st.sampled_from(["number", "text", "items", "pair", "helper", "math"]), values),
    st.tuples(st.sampled_from(["append", "default", "kwdefault", "delete", "nothing"]), values),
)


@given(
    name=st.sampled_from(
        ["reads_number", "calls_helper", "reads_items", "reads_pair", "uses_module", "reads_inside", "inner"]
    ),
    closed_over=values,
    changes=st.lists(steps, max_size=4),
)
def test_if_it_still_holds_the_pickle_is_the_same(name: str, closed_over: Any, changes: list[tuple[str, Any]]) -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(SOURCE, space)
    space["inner"] = space["closing"](closed_over)[0]
    fn = space[name]
    before = cloudpickle.dumps(fn)
    witness = Witness.of(fn)
    if witness is None:
        return
    for what, value in changes:
        if what == "append":
            space["pair"][1].append(value) if isinstance(space["pair"], tuple) else None
            if isinstance(closed_over, list):
                closed_over.append(1)
        elif what == "default":
            fn.__defaults__ = (value,)
        elif what == "kwdefault":
            fn.__kwdefaults__ = {"y": value}
        elif what == "delete":
            space.pop("number", None)
        elif what != "nothing":
            space[what] = value
    if witness.still_holds():
        assert cloudpickle.dumps(fn) == before
