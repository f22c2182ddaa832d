"""The key of a call: which changes of code and arguments make another one, and which do not."""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import math
import operator
import sys
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aparallel._memory.hashing import TooLarge
from aparallel._memory.keys import Binder, KeyMaker
from aparallel.errors import UnstableValueError


def key(fn: Any, *args: Any, options: Any = None, **kwargs: Any) -> bytes:
    return KeyMaker(fn, name=getattr(fn, "__name__", "fn"), **(options or {})).make(args, kwargs).digest


# Binding


def positional(a, b=2, *rest, c, d=4, **more):  # type: ignore[no-untyped-def]
    return {"a": a, "b": b, "rest": rest, "c": c, "d": d, "more": more}


def only(a, /, b, *, c=3):  # type: ignore[no-untyped-def]
    return {"a": a, "b": b, "c": c}


def no_rest(a, b=2):  # type: ignore[no-untyped-def]
    return {"a": a, "b": b}


def nothing():  # type: ignore[no-untyped-def]
    return {}


def keywords(a, /, **more):  # type: ignore[no-untyped-def]
    return {"a": a, "more": more}


@settings(max_examples=400)
@given(
    st.sampled_from([positional, only, no_rest, nothing, keywords]),
    st.lists(st.integers(0, 3), max_size=4),
    st.dictionaries(st.sampled_from("abcdex"), st.integers(0, 3), max_size=4),
)
def test_arguments_are_bound_as_python_binds_them(fn: Any, args: list[int], kwargs: dict[str, int]) -> None:
    binder = Binder(fn)
    try:
        expected = fn(*args, **kwargs)
    except TypeError:
        with pytest.raises(TypeError):
            binder.bind(tuple(args), kwargs)
    else:
        assert dict(zip(binder.names, binder.bind(tuple(args), kwargs), strict=True)) == expected


def test_a_call_has_one_key_however_it_is_written() -> None:
    assert key(no_rest, 1) == key(no_rest, 1, 2) == key(no_rest, a=1, b=2) == key(no_rest, b=2, a=1)
    assert key(positional, 1, c=3, x=1, y=2) == key(positional, 1, 2, y=2, x=1, d=4, c=3)


def test_calls_that_differ_have_different_keys() -> None:
    calls = [((1,), {}), ((1.0,), {}), ((True,), {}), (("1",), {}), ((1, 3), {}), ((3, 1), {}), (([1],), {})]
    assert len({key(no_rest, *args, **kwargs) for args, kwargs in calls}) == len(calls)
    assert key(positional, 1, 2, 3, c=1) != key(positional, 1, 2, c=1, d=3)
    assert key(keywords, 1, a=2) != key(keywords, 2, a=1)


def test_ignored_arguments_do_not_count() -> None:
    assert key(no_rest, 1, 5, options={"ignore": ["b"]}) == key(no_rest, 1, 6, options={"ignore": ["b"]})
    assert key(no_rest, 1, 5, options={"ignore": ["b"]}) != key(no_rest, 2, 5, options={"ignore": ["b"]})
    everything = {"ignore": ["*", "**"]}
    assert key(positional, 1, 2, 3, c=1, z=1, options=everything) == key(positional, 1, 2, 4, c=1, options=everything)
    verbose = {"ignore": ["verbose"]}
    assert key(keywords, 1, verbose=1, x=2, options=verbose) == key(keywords, 1, x=2, options=verbose)


def test_ignoring_what_is_no_parameter_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameter 'z' to ignore; it has a, b"):
        KeyMaker(no_rest, name="no_rest", ignore=["z"])
    with pytest.raises(TypeError, match=r"ignore=\['a'\]"):
        KeyMaker(no_rest, name="no_rest", ignore="a")


def test_a_default_that_is_a_sentinel_is_fine_and_an_argument_that_is_one_is_not() -> None:
    sentinel = object()

    def fn(a: Any, b: Any = sentinel) -> Any:
        return a if b is sentinel else b

    assert key(fn, 1) == key(fn, 1, sentinel) != key(fn, 1, None)
    with pytest.raises(UnstableValueError, match=r"^Argument 'b' of fn: no key can be made of a object"):
        key(fn, 1, object())


@pytest.mark.skipif(sys.version_info < (3, 14), reason="annotations are computed when a function is made")
def test_annotations_that_cannot_be_told_are_not_asked_for() -> None:
    space: dict[str, Any] = {"__name__": "a"}
    exec(compile("def f(x: Missing, *rest: Missing / 2): return x", "source", "exec", dont_inherit=True), space)
    f = space["f"]
    assert key(f, 1) == key(f, x=1) != key(f, 1, 2)
    assert key(functools.partial(f, 1)) != key(functools.partial(f, 2))


def test_functions_without_a_signature_are_bound_as_they_are_called() -> None:
    assert key(max, 1, 2) == key(max, 1, 2)
    assert len({key(max, 1, 2), key(max, 2, 1), key(min, 1, 2), key(math.hypot, 1, 2), key(math.dist, 1, 2)}) == 5


# Code


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ModuleType]]:
    """Write modules of a package ``pack`` (or beside it) and import ``pack.main`` anew."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def forget() -> None:
        for name in [*sys.modules]:
            if name.partition(".")[0] in {"pack", "foreign"}:
                del sys.modules[name]

    def write(**sources: str) -> ModuleType:
        forget()
        for path, source in {"pack/__init__": "", **sources}.items():
            file = tmp_path / f"{path if '/' in path or path == 'foreign' else f'pack/{path}'}.py"
            file.parent.mkdir(exist_ok=True)
            file.write_text(inspect.cleandoc(source) + "\n")
        importlib.invalidate_caches()
        return importlib.import_module("pack.main")

    yield write
    forget()


MAIN = """
    from pack.helpers import helper
    from pack import helpers
    import foreign

    LIMIT = 10

    def f(x):
        return helper(x) + helpers.other(x) + LIMIT + foreign.distant(x)
"""
HELPERS = """
    from pack.deep import deepest
    SCALE = (2, 3)

    def helper(x, factor=1):
        return deepest(x) * factor

    def other(x):
        return [x * part for part in SCALE] and Shape().area()

    class Shape:
        sides = 4
        def area(self):
            return self.sides
        @property
        def name(self):
            return "shape"

    def unrelated(x):
        return x
"""
DEEP = """
    def deepest(x):
        return x + 1
"""
FOREIGN = """
    def distant(x):
        return x
"""
SOURCES = {"main": MAIN, "helpers": HELPERS, "deep": DEEP, "foreign": FOREIGN}


@pytest.mark.parametrize(
    ("module", "before", "after"),
    [
        ("main", "LIMIT = 10", "LIMIT = 11"),
        ("main", "LIMIT = 10", "LIMIT = 10.0"),
        ("main", "+ LIMIT", "- LIMIT"),
        ("main", "f(x)", "f(x, y=0)"),
        ("helpers", "factor=1", "factor=2"),
        ("helpers", "* factor", "/ factor"),
        ("helpers", "(2, 3)", "(2, 4)"),
        ("helpers", "part for", "-part for"),
        ("helpers", "sides = 4", "sides = 5"),
        ("helpers", "return self.sides", "return -self.sides"),
        ("helpers", '"shape"', '"form"'),
        ("deep", "x + 1", "x + 2"),
        ("main", "helpers.other(x)", "helpers.unrelated(x)"),
        ("main", "foreign.distant", "foreign.remote"),
    ],
)
def test_a_change_that_can_matter_makes_another_key(package: Any, module: str, before: str, after: str) -> None:
    old = key(package(**SOURCES).f, 1)
    assert before in SOURCES[module]
    assert key(package(**{**SOURCES, module: SOURCES[module].replace(before, after)}).f, 1) != old


WRAPPED = """
    import functools

    cut = functools.partial(max, 3)
    shift = functools.partial(lambda x, by: x + by, by=5)

    class Shape:
        class Corner:
            angle = 90

            def turn(self):
                return 1

        @functools.lru_cache
        def area(self):
            return 7

        @property
        @functools.lru_cache
        def length(self):
            return 11

    @functools.singledispatch
    def kind(x):
        return 13

    @kind.register
    def _(x: int):
        return 17

    def f(x):
        return kind(x), cut(x), shift(x), Shape.Corner().turn(), Shape().area(), Shape().length
"""


@pytest.mark.parametrize(
    "before", ["max, 3", "max", "by=5", "x + by", "angle = 90", "return 1", "return 7", "return 11"]
)
def test_what_is_wrapped_or_nested_counts_too(before: str, package: Any) -> None:
    after = "min" if before == "max" else before.replace("+", "-") if "+" in before else f"{before}0"
    old = package(main=WRAPPED).f
    assert key(package(main=WRAPPED.replace(before, after)).f, 1) != key(old, 1)
    assert KeyMaker(old, name="f").fingerprint().unseen == ()


CONSTANTS = """
    from dataclasses import dataclass
    from enum import Enum

    import numpy as np

    @dataclass(frozen=True)
    class Settings:
        depth: int
        names: tuple = ("a", "b")

        def twice(self):
            return 2 * self.depth

    class Unit(Enum):
        METRE = 1

        def symbol(self):
            return "m"

    def first(x):
        return 4

    SETTINGS = Settings(depth=3)
    METRE = Unit.METRE
    STEPS = (first, (lambda x: 5,))
    PART = slice(6)
    EPSILON = np.float64(7.5)
    KIND = np.dtype("f8")

    def f(x):
        return SETTINGS.twice(), METRE.symbol(), STEPS[0](x), PART, EPSILON, KIND
"""


@pytest.mark.parametrize(
    "before", ["depth=3", '"a"', "2 * self", "METRE = 1", '"m"', "return 4", "x: 5", "slice(6", "float64(7", '"f8']
)
def test_constants_of_any_kind_count(before: str, package: Any) -> None:
    maker = KeyMaker(package(main=CONSTANTS).f, name="f")
    assert maker.fingerprint().unseen == ()
    after = '"f4' if before == '"f8' else before.replace('"', '"z', 1) if '"' in before else before + "0"
    after = "3 * self" if before == "2 * self" else after
    assert key(package(main=CONSTANTS.replace(before, after)).f, 1) != maker.make((1,), {}).digest
    assert key(package(main=CONSTANTS).f, 1) == maker.make((1,), {}).digest


def test_what_can_change_in_a_class_or_a_tuple_is_named_as_unseen(package: Any) -> None:
    source = """
        class Table:
            rows = {}
            limit = 3
            _hidden = []

        PAIRS = ([1], 2)

        def f(x):
            return Table.rows, PAIRS
    """
    assert KeyMaker(package(main=source).f, name="f").fingerprint().unseen == ("PAIRS", "Table.rows")


@pytest.mark.parametrize(
    ("module", "before", "after"),
    [
        ("main", "LIMIT = 10", "UNUSED = 5\n\n    LIMIT = 10  # a comment"),
        ("main", "def f(x):", 'def f(x):\n        """What it does."""'),
        ("main", "def f(x):", "def f(x: int) -> int:"),
        ("helpers", "def other(x):", 'def other(x):\n        """What it does."""'),
        ("helpers", "sides = 4", "sides: int = 4"),
        ("helpers", "def area(self):", "def area(self) -> int:"),
        ("helpers", "def unrelated(x):\n        return x", "def unrelated(x):\n        return -x"),
        ("foreign", "return x", "return -x"),
    ],
)
def test_a_change_that_cannot_matter_does_not(package: Any, module: str, before: str, after: str) -> None:
    old = key(package(**SOURCES).f, 1)
    assert before in SOURCES[module]
    assert key(package(**{**SOURCES, module: SOURCES[module].replace(before, after)}).f, 1) == old


def test_a_docstring_that_is_also_used_counts(package: Any) -> None:
    source = 'pass\n\n    def f(x):\n        "{}"\n        return "{}"'
    assert key(package(main=source.format("a", "a")).f, 1) != key(package(main=source.format("b", "b")).f, 1)


def test_tracking_can_be_narrowed(package: Any) -> None:
    def keys(**changed: str) -> list[bytes]:
        fn = package(**{**SOURCES, **changed}).f
        return [key(fn, 1, options={"track": track}) for track in ("deep", "own", "none")]

    old = keys()
    assert len(set(old)) == 3

    def equal(**changed: str) -> list[bool]:
        return [a == b for a, b in zip(old, keys(**changed), strict=True)]

    assert equal(deep=DEEP.replace("+ 1", "+ 2")) == [False, True, True]
    assert equal(main=MAIN.replace("= 10", "= 11")) == [False, False, True]
    assert equal(main=MAIN.replace("+ LIMIT", "- LIMIT")) == [False, False, True]
    assert equal() == [True, True, True]


def test_depends_on_adds_what_tracking_cannot_see(package: Any) -> None:
    main = MAIN + "\n    def g(x):\n        return x"

    def keys(**changed: str) -> list[bytes]:
        module = package(**{**SOURCES, "main": main, **changed})
        given = [[module.foreign.distant], [module.foreign], [1], [{"a": 1}]]
        return [key(module.g, 1, options={"depends_on": dependencies}) for dependencies in ([], *given)]

    old = keys()
    assert len(set(old)) == 5
    changed = keys(foreign=FOREIGN.replace("return x", "return -x"))
    assert [a == b for a, b in zip(old, changed, strict=True)] == [True, False, False, True, True]


def test_globals_that_can_change_are_named_as_unseen(package: Any) -> None:
    source = """
        CACHE = {}
        counter = 0

        def f(x):
            global counter
            counter += 1
            return CACHE.get(x, len(CACHE))
    """
    module = package(main=source)
    maker = KeyMaker(module.f, name="f")
    assert maker.fingerprint().unseen == ("CACHE",)
    before = maker.make((1,), {}).digest
    module.CACHE[1] = 2
    module.counter += 1
    assert maker.make((1,), {}).digest == before


def test_what_is_found_when_the_function_runs_is_named_as_unseen(package: Any) -> None:
    source = """
        import math

        def late(x):
            import os.path
            from pack.helpers import helper
            from . import helpers
            def inner():
                import pack.helpers as again
                return again
            return helper(x)

        def looked_up(x, name):
            return getattr(math, name)(x)

        def known(x):
            import math
            return len(x)
    """
    module = package(**{**SOURCES, "main": source})
    unseen = {
        name: KeyMaker(getattr(module, name), name=name).fingerprint().unseen
        for name in vars(module)
        if name in ("late", "looked_up", "known")
    }
    assert unseen == {
        "late": ("pack.helpers", "pack.helpers.helper"),
        "looked_up": ("what getattr finds",),
        "known": (),
    }
    helper = importlib.import_module("pack.helpers").helper
    told = KeyMaker(module.late, name="late", depends_on=[helper])
    assert told.fingerprint().unseen == ("pack.helpers",)


def test_methods_of_arguments_are_named_as_unseen(package: Any) -> None:
    source = """
        from dataclasses import dataclass

        class Base:
            def shared(self):
                return 1

        class Model(Base):
            def __reduce__(self):
                return Model, ()

        @dataclass
        class Plain:
            x: int

        class Used(Model):
            pass

        def f(x):
            return x.shared()

        def g(x):
            return Used() or x

        def h(x, y):
            return x
    """
    module = package(main=source)

    def unseen(fn: Any, *args: Any) -> tuple[str, ...]:
        maker = KeyMaker(fn, name="f")
        return maker.unseen(maker.make(args, {}), args, {})

    assert unseen(module.f, module.Model()) == ("methods of Model",)
    assert unseen(module.h, module.Model(), module.Base()) == ("methods of Base", "methods of Model")
    assert [unseen(module.f, value) for value in (1, "x", [1], Fraction(1, 2), module.Plain(1))] == [()] * 5
    assert unseen(module.g, module.Used()) == ()


def test_a_name_that_means_something_else_now_is_noticed(package: Any) -> None:
    module = package(**SOURCES)
    maker = KeyMaker(module.f, name="f")
    seen = {maker.make((1,), {}).digest}
    for change in (
        "LIMIT = 12",
        "def helper(x): return x",
        "helpers.other = len",
        "def len(x): return 1",
        "print(len)",
    ):
        exec(change, vars(module))
        seen.add(maker.make((1,), {}).digest)
    assert len(seen) == 4  # f does not use len


def test_a_stale_fingerprint_is_never_renewed_on_the_loop(package: Any) -> None:
    module = package(**SOURCES)
    maker = KeyMaker(module.f, name="f")
    with pytest.raises(TooLarge):
        maker.make((1,), {}, budget=100)
    known = maker.make((1,), {})
    assert maker.make((1,), {}, budget=100).digest == known.digest
    module.LIMIT = 99
    with pytest.raises(TooLarge):
        maker.make((1,), {}, budget=100)


def test_bytes_of_any_kind_are_hashed_on_the_loop_only_if_they_are_few() -> None:
    maker = KeyMaker(no_rest, name="no_rest")
    maker.fingerprint()
    for kind in (bytes, bytearray, memoryview):
        assert maker.make((kind(b"few"),), {}, budget=400)
        with pytest.raises(TooLarge):
            maker.make((kind(bytes(1 << 20)),), {}, budget=400)


def test_a_cell_run_again_is_the_same_function() -> None:
    def run_cell(source: str) -> Any:
        namespace: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(source, f"<cell {next(cells)}>", "exec"), namespace)
        return namespace["f"]

    cells = itertools.count()
    source = "def helper(x): return x\ndef f(x): return helper(x) + 1"
    assert key(run_cell(source), 1) == key(run_cell(f"\n\n{source}"), 1)
    assert key(run_cell(source), 1) != key(run_cell(source.replace("+ 1", "+ 2")), 1)
    assert key(run_cell(source), 1) != key(run_cell(source.replace("return x\n", "return -x\n")), 1)


def test_closures_count_by_what_they_close_over() -> None:
    def make(held: Any) -> Callable[[int], Any]:
        return lambda x: (x, held)

    helds = [1, 1.0, [1], [2], {"a": 1}, len, make(1), make(2)]
    assert len({key(make(held), 1) for held in helds}) == len(helds)
    held = [1]
    fn = make(held)
    maker = KeyMaker(fn, name="fn")
    before = maker.make((1,), {}).digest
    held.append(2)
    assert maker.make((1,), {}).digest != before
    with pytest.raises(UnstableValueError, match=r"^What fn closes over: no key can be made of a _thread.lock"):
        KeyMaker(make(threading.Lock()), name="fn").make((1,), {})


def test_recursion_and_mutual_recursion_end(package: Any) -> None:
    source = """
        def even(n):
            return n == 0 or odd(n - 1)

        def odd(n):
            return n != 0 and even(n - 1)
    """
    module = package(main=source)
    assert key(module.even, 1) != key(module.odd, 1)
    old = key(module.even, 1)
    assert key(package(main=source.replace("n != 0", "n > 0")).even, 1) != old


def test_every_form_of_callable_has_a_key() -> None:
    class Scaler:
        def __init__(self, factor: int) -> None:
            self.factor = factor

        def __call__(self, x: int) -> int:
            return self.factor * x

        def scale(self, x: int) -> int:
            return self.factor * x

    @functools.lru_cache
    def cached(x: int) -> int:
        return x

    @functools.wraps(no_rest)
    def wrapper(*args: Any) -> Any:
        return no_rest(*args)

    forms: list[Callable[[], Any]] = [
        lambda: Scaler(1),
        lambda: Scaler(2),
        lambda: Scaler(1).scale,
        lambda: Scaler(2).scale,
        lambda: Scaler,
        lambda: functools.partial(no_rest, b=1),
        lambda: functools.partial(no_rest, b=2),
        lambda: cached,
        lambda: wrapper,
        lambda: no_rest,
        lambda: math.sqrt,
        lambda: "a".join,
        lambda: "b".join,
    ]
    keys = [key(make(), 1) for make in forms]
    assert len(set(keys)) == len(forms)
    assert [key(make(), 1) for make in forms] == keys


class Proxy:
    def __init__(self, get: Callable[[str], Any]) -> None:
        self.get = get

    def __getattr__(self, name: str) -> Any:
        return self.get(name)

    __call__ = operator.methodcaller("call")


def unbound(name: str) -> Any:
    raise RuntimeError("outside of a request")


anything = Proxy(lambda name: Proxy(anything.get))
request = Proxy(unbound)


def test_proxies_and_mocks_that_a_function_reads_are_asked_for_nothing() -> None:
    assert key(lambda: (anything(), request(), mock.call()))


def test_what_a_function_does_to_its_closure_is_its_own_doing() -> None:
    count = 0
    total = [0]
    record: list[int] = []
    seen: dict[int, int] = {}
    latest = [0, 0]
    state = functools.partial(print)

    def fn(x: int) -> int:
        nonlocal count
        count += 1
        record.append(x)
        seen[x] = x
        total[0] += x
        latest[x:] = [x]
        state.last = x  # type: ignore[attr-defined]
        return max(x for _ in range(3) if not record.append(x))  # type: ignore[func-returns-value]

    maker = KeyMaker(fn, name="fn")
    before = maker.make((1,), {}).digest
    fn(1)
    assert (count, total, record, seen, latest) == (1, [1], [1, 1, 1, 1], {1: 1}, [0, 1])
    assert maker.make((1,), {}).digest == before
    assert set(maker.fingerprint().unseen) == {"count", "total", "record", "seen", "latest", "state"}


def test_a_function_may_use_the_types_of_functions() -> None:
    def kind(x: object) -> bool:
        return isinstance(x, FunctionType | MethodType)

    assert key(kind, 1) == key(kind, 1) != key(kind, 2)


def test_a_call_that_does_not_fit_says_of_which_function() -> None:
    binder = Binder(lambda x: x, name="features")
    with pytest.raises(
        TypeError, match=r"^features\(\) cannot be called like that: missing a required argument: 'x'\.$"
    ):
        binder.bind((), {})
