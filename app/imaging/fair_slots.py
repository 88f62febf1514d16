"""Lets so many in at once. Callers take turns, and the last place is for somebody who has none."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """Places that callers take for a while. Lives on one event loop.

    Args:
        places: how many there are; one caller alone gets all but one of them.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._inside: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def turn(self, caller: str) -> AsyncIterator[None]:
        """Hold a place, as soon as there is one for this caller."""
        mine = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(mine)
        self._let_in()
        try:
            await mine
            yield
        finally:
            if mine.cancelled():
                self._forget(caller, mine)
            else:
                self._free += 1
                self._inside -= Counter([caller])
                self._let_in()

    def _let_in(self) -> None:
        """Whoever has least inside comes next; of several the one who came, or was let in, the longest time ago."""
        while self._waiting:
            caller = min(self._waiting, key=self._inside.__getitem__)
            if self._free < (2 if self._inside[caller] else 1):
                return
            line = self._waiting[caller]
            if line[0].cancelled():
                # In this very moment: it has not yet come to take itself out.
                self._forget(caller, line[0])
                continue
            self._free -= 1
            self._inside[caller] += 1
            line.popleft().set_result(None)
            # Behind the others.
            del self._waiting[caller]
            if line:
                self._waiting[caller] = line

    def _forget(self, caller: str, waiter: "asyncio.Future[None]") -> None:
        line = self._waiting.get(caller, deque())
        if waiter in line:
            line.remove(waiter)
        if not line:
            self._waiting.pop(caller, None)
