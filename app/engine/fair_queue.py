"""A queue whose callers take turns by the work that each has had, however much each has waiting.

Start-time fair queueing (Goyal, Vin and Cheng, 1996). A caller's tag moves on when its work begins, so that withdrawn
work costs it nothing.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heapreplace
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass
class _Line(Generic[T]):
    """The waiting items of one caller with their costs, and a tag for the work that it has had."""

    tag: float
    items: deque[tuple[float, T]] = field(default_factory=deque)


class FairQueue(Generic[T]):
    """Items of several callers. A caller's items leave in their order; a new caller owes nothing."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line[T]] = {}
        self._first: deque[T] = deque()
        self._now = 0.0

    def __len__(self) -> int:
        return len(self._first) + sum(len(line.items) for line in self._lines.values())

    def __iter__(self) -> Iterator[T]:
        yield from self._first
        for line in self._lines.values():
            yield from (item for _, item in line.items)

    def in_turn(self) -> Iterator[T]:
        """All items in the order in which they leave if no other is added. The queue must not change meanwhile."""
        yield from self._first
        # The number decides between equal tags, as the order of the lines does in `pop`.
        lines = [(line.tag, number, iter(line.items)) for number, line in enumerate(self._lines.values())]
        heapify(lines)
        while lines:
            tag, number, items = lines[0]
            if following := next(items, None):
                cost, item = following
                heapreplace(lines, (tag + cost, number, items))
                yield item
            else:
                heappop(lines)

    def push(self, item: T, caller: str, cost: float) -> None:
        """Add an item behind the other items of its caller."""
        line = self._lines.setdefault(caller, _Line(self._now))
        if not line.items:
            line.tag = max(line.tag, self._now)
        line.items.append((cost, item))

    def push_first(self, item: T) -> None:
        """Add an item before all others: it had its turn, and lost it through no fault of its caller."""
        self._first.appendleft(item)

    def pop(self) -> T:
        """The next item. Raises `IndexError` if there is none."""
        if self._first:
            return self._first.popleft()
        lines = [line for line in self._lines.values() if line.items]
        if not lines:
            raise IndexError("the queue is empty")
        line = min(lines, key=lambda one: one.tag)
        cost, item = line.items.popleft()
        self._now = line.tag
        line.tag += cost
        # A caller without items that owes nothing need not be remembered.
        self._lines = {name: one for name, one in self._lines.items() if one.items or one.tag > self._now}
        return item

    def remove(self, item: T) -> None:
        """Remove an item; no effect if it is not in the queue."""
        self._first = deque(one for one in self._first if one is not item)
        for line in self._lines.values():
            line.items = deque((cost, one) for cost, one in line.items if one is not item)
