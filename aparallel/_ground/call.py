"""A call that has not run yet: a function bound to its arguments."""

from __future__ import annotations

import functools
from collections.abc import Coroutine, Sized
from itertools import chain, islice
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, Self, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

_partial = functools.partial  # a lookup less, for what runs once per call

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

if TYPE_CHECKING:

    class Call(Generic[T_co]):
        """A function bound to its arguments, not yet run; what ``delayed(f)(x)`` returns.

        To a type checker it is no partial, because that one is invariant: a list of calls of different
        functions could then not be gathered.
        """

        def __init__(self, fn: Callable[..., T_co], /, *args: Any, **keywords: Any) -> None: ...
        @property
        def func(self) -> Callable[..., T_co]: ...
        @property
        def args(self) -> tuple[Any, ...]: ...
        @property
        def keywords(self) -> dict[str, Any]: ...
        def __call__(self) -> T_co: ...

    class DelayedCoroutine(Protocol[P, T_co]):
        """What ``delayed`` makes of a coroutine function, to a type checker."""

        def __call__(self, /, *args: P.args, **keywords: P.kwargs) -> Call[T_co]: ...

else:

    class Call(functools.partial):
        """A function bound to its arguments, not yet run; what ``delayed(f)(x)`` returns.

        Immutable. ``func``, ``args`` and ``keywords`` are its parts; calling it runs it here
        and now. It is a partial because C code then builds it: 0.39 µs for ``delayed(f)(1)``
        where a class with slots takes 0.56 and a frozen dataclass over 1.
        """

        __slots__ = ()

        def __class_getitem__(cls, item: object) -> type[Call]:
            return cls

        def __setattr__(self, name: str, *value: object) -> None:
            raise AttributeError(f"{self!r} is immutable. Make another with delayed(...)(...).")

        __delattr__ = __setattr__

        def __repr__(self) -> str:
            return f"Call({describe(self)})"


# To iterate over these runs nobody's code, so it does not matter when that is done.
_QUIET = frozenset({list, tuple, range, dict, set, frozenset, str, bytes})


class MappedCalls:
    """Calls of one function with successive items of iterables, which end with the shortest.

    To whoever does not know it, it is an iterator of calls. An encoder may take many items at a time, and make no calls
    of them, where nothing can see the difference.

    Attributes:
        func: the function.
        has_one_argument: items are arguments; else they are tuples of them.
        is_quiet: to draw items ahead runs nobody's code.
        total: how many there are, if that is known.
    """

    def __init__(self, fn: Callable[..., Any], iterables: Sequence[Iterable[Any]]) -> None:
        self.func = fn
        self.has_one_argument = len(iterables) == 1
        self.is_quiet = all(type(iterable) in _QUIET for iterable in iterables)
        lengths = [len(iterable) for iterable in iterables if isinstance(iterable, Sized)]
        self.total = min(lengths) if len(lengths) == len(iterables) else None
        self._items: Iterator[Any] = iter(iterables[0]) if self.has_one_argument else zip(*iterables, strict=False)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Call[Any]:
        item = next(self._items)
        return Call(self.func, item) if self.has_one_argument else Call(self.func, *item)

    def take(self, count: int) -> list[Any]:
        """Return the next *count* items, or as many as there are."""
        return list(islice(self._items, count))

    def put_back(self, items: list[Any]) -> None:
        """Have *items* come next, again."""
        self._items = chain(items, self._items)


# mypy would take a function like random.choice, whose result has whatever type, for one that makes coroutines. That a
# coroutine yields something made of P says nothing, as what it yields is Any; but a type that P is made of cannot have
# P inside, so that the second overload is taken. The protocol is a type unlike the second one's: where Any makes both
# fit, a strict mypy would complain of "untyped" functions if they were alike.
@overload
def delayed(fn: Callable[P, Coroutine[Callable[P, Any], Any, T]]) -> DelayedCoroutine[P, T]: ...
@overload
def delayed(fn: Callable[P, T]) -> Callable[P, Call[T]]: ...
def delayed(fn: Callable[P, Any]) -> Callable[P, Call[Any]]:
    """Return a function that takes *fn*'s arguments and gives a :class:`Call` instead of running *fn*.

    A coroutine function's call stands for what is awaited: workers await it.

    Raises:
        TypeError: *fn* is not callable.
    """
    if not callable(fn):
        raise not_a_function(fn, "delayed(f)(x), not delayed(f(x))")
    return _partial(Call, fn)  # which takes P and gives a Call


def describe(call: Call[Any]) -> str:
    """Say *call* as one would write it, arguments cut short: ``f, 1, y=2``."""
    parts = [name_of(call.func)]
    parts += [_short(value) for value in call.args]
    parts += [f"{name}={_short(value)}" for name, value in call.keywords.items()]
    return ", ".join(parts)


def name_of(fn: Any) -> str:
    """Name a callable for people: ``features.extract``; functions of ``__main__`` without the module."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
    module = getattr(fn, "__module__", None)
    return name if module in (None, "__main__", "builtins") else f"{module}.{name}"


def _short(value: object) -> str:
    try:
        text = repr(value) if isinstance(value, int | float | str | bytes | bool | None) else ""
    except Exception:  # a repr of a str subclass is user code
        text = ""
    return text if text and len(text) <= 40 else f"<{type(value).__name__}>"


def is_function(fn: Any) -> bool:
    """Whether *fn* can be bound to arguments; ``delayed(f)`` can, but running it would not run *f*."""
    return callable(fn) and not (type(fn) is _partial and fn.func is Call)  # inlined: pool.run asks it


def _is_half_a_call(thing: Any) -> bool:
    return type(thing) is _partial and thing.func is Call


def not_a_function(fn: Any, instead: str) -> TypeError:
    """Build the error for what was given where a function belongs; *instead* is how to write it."""
    if _is_half_a_call(fn):
        return TypeError(f"delayed({name_of(fn.args[0])}) is without its arguments. Write {instead}.")
    error = TypeError(f"{_short(fn)} ({type(fn).__name__}) is not a function. Write {instead}.")
    if isinstance(fn, Coroutine):
        fn.close()  # as in wrong_item
    return error


def close_coroutines(source: object) -> None:
    """Close the coroutines in a list of calls that is refused: Python need not warn that nobody awaits them."""
    if isinstance(source, list | tuple):
        for item in source:
            if isinstance(item, Coroutine):
                item.close()


def wrong_item(item: Any, index: int) -> TypeError:
    """Build the error for something among the calls that is not a call."""
    import asyncio

    if isinstance(item, Coroutine):
        name = getattr(item, "__qualname__", None) or getattr(item, "__name__", type(item).__name__)
        item.close()  # it will never be awaited; Python need not warn about that too
        if isinstance(item, asyncio.Future):  # of a pool
            return TypeError(f"Item {index} is a call of {name}, which is to be awaited. Write delayed(f)(x) instead.")
        return TypeError(f"Item {index} is the coroutine {name}(...). Write delayed({name})(...), which workers await.")
    if isinstance(item, asyncio.Future):
        return TypeError(f"Item {index} is a future ({type(item).__name__}), which is to be awaited, and not a call.")
    if _is_half_a_call(item):
        name = name_of(item.args[0])
        return TypeError(f"Item {index} is delayed({name}) without its arguments. Write delayed({name})(...).")
    if isinstance(item, tuple) and len(item) == 3 and callable(item[0]):  # joblib's
        return TypeError(f"Item {index} is a call as joblib makes it. Write from aparallel import delayed.")
    if isinstance(item, FunctionType | BuiltinFunctionType | MethodType | type):
        name, kind = name_of(item), "class" if isinstance(item, type) else "function"
        return TypeError(f"Item {index} is the {kind} {name}, not a call. Write delayed({name})(...).")
    return TypeError(
        f"Item {index} is {_short(item)} ({type(item).__name__}), not a call. "
        f"Write delayed(f)(x) for x in xs: f(x) would already have run."
    )
