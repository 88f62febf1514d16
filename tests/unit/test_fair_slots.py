"""Whose turn it is, without processes and without time."""

import asyncio

import pytest

from app.imaging.fair_slots import FairSlots


class Visitors:
    """Tasks that take a slot and hold it until they are released."""

    def __init__(self, places: int) -> None:
        self.turns = FairSlots(places)
        self.inside: list[str] = []
        self.doors: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, *names: str) -> list[str]:
        """Callers are known by the first letters of their visitors; returns who is inside then."""
        for name in names:
            self.doors[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._visit(name))
        return await self._inside()

    async def go(self, name: str) -> list[str]:
        self.doors[name].set()
        return await self._inside()

    async def give_up(self, name: str) -> list[str]:
        self.tasks[name].cancel()
        return await self._inside()

    async def _visit(self, name: str) -> None:
        async with self.turns.slot(name[0]):
            self.inside.append(name)
            try:
                await self.doors[name].wait()
            finally:
                self.inside.remove(name)

    async def _inside(self) -> list[str]:
        for _ in range(10):
            await asyncio.sleep(0)
        return sorted(self.inside)


@pytest.mark.anyio
async def test_last_slot_is_for_a_caller_that_holds_none() -> None:
    visitors = Visitors(3)
    assert await visitors.come("a1", "a2", "a3", "a4") == ["a1", "a2"]
    assert await visitors.come("b1", "b2") == ["a1", "a2", "b1"]
    assert await visitors.go("a1") == ["a2", "b1"]
    assert await visitors.come("c1") == ["a2", "b1", "c1"]


@pytest.mark.anyio
async def test_caller_with_the_fewest_slots_is_next() -> None:
    visitors = Visitors(2)
    assert await visitors.come("a1", "a2", "a3", "b1", "c1") == ["a1", "b1"]
    assert await visitors.go("a1") == ["a2", "b1"]
    assert await visitors.go("b1") == ["a2", "c1"]
    assert await visitors.go("a2") == ["a3", "c1"]


@pytest.mark.anyio
async def test_cancelled_waiter_takes_and_keeps_no_slot() -> None:
    visitors = Visitors(2)
    assert await visitors.come("a1", "a2", "a3") == ["a1"]
    assert await visitors.give_up("a2") == ["a1"]
    assert await visitors.give_up("a1") == ["a3"]
    assert await visitors.give_up("a3") == []
    assert await visitors.come("a4", "b1") == ["a4", "b1"]


@pytest.mark.anyio
async def test_waiter_cancelled_as_it_gets_a_slot_frees_it() -> None:
    visitors = Visitors(2)
    assert await visitors.come("a1", "a2") == ["a1"]
    visitors.doors["a1"].set()
    await asyncio.sleep(0)
    visitors.tasks["a2"].cancel()
    assert await visitors.come("a3") == ["a3"]


@pytest.mark.anyio
async def test_waiter_cancelled_as_a_slot_gets_free_does_not_take_it() -> None:
    visitors = Visitors(2)
    assert await visitors.come("a1", "a2", "a3") == ["a1"]
    visitors.tasks["a1"].cancel()
    visitors.tasks["a2"].cancel()
    assert await visitors.come("b1") == ["a3", "b1"]
    for name in ("a3", "b1"):
        await visitors.go(name)
    assert await visitors.come("c1", "d1") == ["c1", "d1"]


@pytest.mark.anyio
async def test_error_inside_frees_the_slot() -> None:
    turns = FairSlots(2)
    for _ in range(3):
        with pytest.raises(ValueError, match="inside"):
            async with turns.slot("a"):
                raise ValueError("inside")
