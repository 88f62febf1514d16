"""A semaphore whose slots are shared fairly between callers."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FairSlots:
    """Slots that callers hold for a while; one is reserved for callers that hold none. Lives on one event loop.

    Args:
        count: the number of slots; a caller alone gets all but one of them.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def slot(self, caller: str) -> AsyncIterator[None]:
        """Hold a slot, as soon as there is one for this caller."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(waiter)
        self._grant()
        try:
            await waiter
            yield
        finally:
            if waiter.cancelled():
                self._forget(caller, waiter)
            else:
                self._free += 1
                self._held -= Counter([caller])
                self._grant()

    def _grant(self) -> None:
        """Give free slots to the callers that hold the fewest; among equals, to the one that waits the longest."""
        while self._waiting:
            caller = min(self._waiting, key=self._held.__getitem__)
            if self._free < (2 if self._held[caller] else 1):
                return
            line = self._waiting[caller]
            if line[0].cancelled():
                # Just now: its own task has not run yet, and so has not removed it.
                self._forget(caller, line[0])
                continue
            self._free -= 1
            self._held[caller] += 1
            line.popleft().set_result(None)
            # The caller moves behind the others.
            del self._waiting[caller]
            if line:
                self._waiting[caller] = line

    def _forget(self, caller: str, waiter: "asyncio.Future[None]") -> None:
        line = self._waiting.get(caller, deque())
        if waiter in line:
            line.remove(waiter)
        if not line:
            self._waiting.pop(caller, None)
