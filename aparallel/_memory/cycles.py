"""The canonical encoding of values that refer to themselves, or are nested deeper than Python can recurse.

The value is read as a graph. Its strongly connected components come out of Tarjan's algorithm
(Depth-first search and linear graph algorithms, 1972) children first. A value that is on no cycle is then
encoded as everywhere else. The values on a common cycle are told apart by partition refinement: each gets
a colour made of its tag and of its children's colours, again and again, until no more colours appear.
Two values end with equal colours if, and only if, following the same references from them meets the same
content for ever; so the encoding does not depend on where the cycle was entered or on what is shared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aparallel._ground.hop import pause
from aparallel._memory.encoding import ATOMS, Parts, combine, join

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_PAUSE_EVERY = 256


class _Graph:
    """Values by number, in the order in which they are first met."""

    def __init__(self, take_apart: Callable[[Any], Parts | bytes]) -> None:
        self._take_apart = take_apart
        self._numbers: dict[int, int] = {}
        self._alive: list[object] = []  # so that no id is used twice
        self.parts: list[Parts | None] = []
        self.children: list[list[int]] = []
        self.encodings: list[bytes | None] = []

    def number_of(self, value: Any) -> int:
        """The number of *value*, which is taken apart when it is first met."""
        atom = ATOMS.get(type(value))
        known = self._numbers.get(id(value)) if atom is None else None
        if known is not None:
            return known
        number = len(self.parts)
        parts = atom(value) if atom is not None else self._take_apart(value)
        if atom is None:
            self._numbers[id(value)] = number
            if number % _PAUSE_EVERY == 0:
                pause()
        self._alive.append(value)
        self.parts.append(None if isinstance(parts, bytes) else parts)
        self.encodings.append(parts if isinstance(parts, bytes) else None)
        self.children.append([])
        return number

    def expand(self, number: int) -> None:
        parts = self.parts[number]
        if parts is not None:
            self._alive.append(parts.children)
            self.children[number] = [self.number_of(child) for child in parts.children]


def encode_graph(root: object, take_apart: Callable[[Any], Parts | bytes]) -> bytes:
    """Return the canonical encoding of *root*, without recursion. Raises what *take_apart* raises."""
    graph = _Graph(take_apart)
    start = graph.number_of(root)
    for component in _components(graph, start):
        if len(component) == 1 and component[0] not in graph.children[component[0]]:
            (number,) = component
            if graph.encodings[number] is None:
                graph.encodings[number] = _combined(graph, number, {})
        else:
            _encode_cycle(graph, component)
    encoding = graph.encodings[start]
    assert encoding is not None
    return encoding


def _combined(graph: _Graph, number: int, colours: Mapping[int, bytes]) -> bytes:
    """Encode a value by its children's colours where they have some, else by their encodings, which are final."""
    parts = graph.parts[number]
    assert parts is not None
    children: list[Any] = [colours.get(child) or graph.encodings[child] for child in graph.children[number]]
    return combine(parts.tag, children, parts.kind)


def _encode_cycle(graph: _Graph, component: list[int]) -> None:
    """Encode values that can all be reached from each other."""
    colours: dict[int, bytes] = dict.fromkeys(component, b"~")
    count = 0
    while True:
        refined = {number: _combined(graph, number, colours) for number in component}
        colours, before, count = refined, count, len(set(refined.values()))
        pause()
        if count == before:
            break
    # With the set of all colours, equal encodings also mean equal refinements: the colours of two
    # components that agree in it are each other's translation from every round to the next.
    all_colours = join(b"*", sorted(set(colours.values())))
    for number, colour in colours.items():
        graph.encodings[number] = join(b"@", [colour, all_colours])


def _components(graph: _Graph, start: int) -> Iterator[list[int]]:
    """Yield the strongly connected components, each after all that it refers to."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    work: list[tuple[int, int]] = [(start, 0)]
    while work:
        number, position = work.pop()
        if position == 0:
            index[number] = low[number] = len(index)
            stack.append(number)
            on_stack.add(number)
            graph.expand(number)
        children = graph.children[number]
        if position > 0:
            low[number] = min(low[number], low[children[position - 1]])
        while position < len(children):
            child = children[position]
            position += 1
            if child not in index:
                work.append((number, position))
                work.append((child, 0))
                break
            if child in on_stack:
                low[number] = min(low[number], index[child])
        else:
            if low[number] == index[number]:
                component = []
                while True:
                    member = stack.pop()
                    on_stack.discard(member)
                    component.append(member)
                    if member == number:
                        break
                yield component
