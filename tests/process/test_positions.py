"""Positions in the queue, which the engine sends to the requests that wait."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from app.edits import Queued
from app.engine.engine import Engine
from app.engine.fair_queue import FairQueue
from app.engine.liveness import LivenessLimits
from app.engine.messages import Progress, Start
from app.engine.positions import PASS_SECONDS, Positions
from app.engine.supervisor import WorkerSupervisor
from app.engine.ticket import Ticket
from app.errors import EngineStopped
from app.observability.metrics import Metrics
from app.settings import Settings
from tests.support.engines import deaths, job, running, until
from tests.support.fakes import FAKE

WATCHERS = 128


class CountingQueue(FairQueue[Ticket]):
    """Counts the passes over it, and the items that they visit."""

    passes = 0
    visited = 0

    def in_turn(self) -> Iterator[Ticket]:
        self.passes += 1
        for ticket in super().in_turn():
            self.visited += 1
            yield ticket


@dataclass
class Crowd:
    """Tickets of as many callers, in a queue that no worker serves."""

    queue: CountingQueue = field(default_factory=CountingQueue)
    seen: dict[str, list[int]] = field(default_factory=dict)
    lanes: list[WorkerSupervisor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.positions = Positions(self.queue, self.lanes)

    def join(self, name: str, watched: bool = True) -> Ticket:
        def note(message: Queued | Progress) -> None:
            assert isinstance(message, Queued)
            self.seen.setdefault(name, []).append(message.ahead)

        # It has waited long enough to get a position.
        enqueued = time.monotonic() - 1.0
        ticket = Ticket(job(name), asyncio.get_running_loop().create_future(), note if watched else None, enqueued)
        self.positions.add(ticket)
        self.queue.push(ticket, name, 1.0)
        self.positions.changed()
        return ticket

    def leave(self, ticket: Ticket) -> None:
        self.positions.remove(ticket)
        self.queue.remove(ticket)
        self.positions.changed()

    async def settle(self) -> None:
        """Until no pass is due."""
        await until(lambda: self.positions._timer is None)


@pytest.mark.anyio
async def test_positions_of_128_watchers_take_one_pass_per_burst() -> None:
    crowd = Crowd()
    tickets = [crowd.join(f"caller {number}") for number in range(WATCHERS)]
    await crowd.settle()
    assert crowd.seen == {f"caller {number}": [number] for number in range(WATCHERS)}
    assert (crowd.queue.passes, crowd.queue.visited) == (1, WATCHERS)
    for ticket in tickets[:100]:
        crowd.leave(ticket)
    await crowd.settle()
    assert [crowd.seen[ticket.job.id] for ticket in tickets[100:]] == [[100 + n, n] for n in range(WATCHERS - 100)]
    assert (crowd.queue.passes, crowd.queue.visited) == (2, WATCHERS + 28)
    # 1,100 changes in two passes, of 128 and 28 tickets.
    for _ in range(500):
        crowd.leave(crowd.join("guest", watched=False))
    await crowd.settle()
    assert crowd.queue.passes == 3
    assert sum(map(len, crowd.seen.values())) == WATCHERS + 28


@pytest.mark.anyio
async def test_positions_while_nothing_changes_take_no_pass() -> None:
    crowd = Crowd()
    crowd.join("caller")
    await crowd.settle()
    await asyncio.sleep(2 * PASS_SECONDS)
    assert crowd.queue.passes == 1


@pytest.mark.anyio
async def test_positions_without_a_waiting_watcher_take_no_pass() -> None:
    crowd = Crowd()
    crowd.join("plain", watched=False)
    assert crowd.positions._timer is None
    crowd.join("running").started = time.monotonic()
    crowd.leave(crowd.join("gone"))
    await crowd.settle()
    assert crowd.queue.passes == 0
    assert not crowd.seen


@pytest.mark.anyio
async def test_positions_count_the_tickets_of_workers_first() -> None:
    failures: list[EngineStopped] = []
    metrics, settings = Metrics(), Settings(devices="cpu")
    engine = Engine(settings, metrics, FAKE, failures.append)
    lane = WorkerSupervisor(Start(FAKE, "cpu", settings.for_worker()), metrics, engine, LivenessLimits())
    crowd = Crowd(lanes=[lane])
    for name in ("running", "handed over", "waiting"):
        crowd.join(name)
    for _ in range(2):
        lane.send(crowd.queue.pop())
    lane.tickets["running"].started = time.monotonic()
    await crowd.settle()
    assert crowd.seen == {"handed over": [1], "waiting": [2]}


@pytest.mark.anyio
async def test_position_of_a_new_ticket_is_sent_in_a_later_pass() -> None:
    crowd = Crowd()
    crowd.join("old")
    crowd.join("new").enqueued = time.monotonic() + PASS_SECONDS
    await crowd.settle()
    assert crowd.seen == {"old": [0], "new": [1]}
    assert crowd.queue.passes >= 2


@pytest.mark.anyio
async def test_engine_sends_positions_to_each_job_that_waits() -> None:
    seen: dict[str, list[Queued | Progress]] = {name: [] for name in "abc"}
    async with running(model="slow") as engine:
        a, b, c = (asyncio.create_task(engine.run(job(name), seen[name].append, name)) for name in seen)
        await until(lambda: all(seen.values()))
        assert seen == {"a": [Queued(0)], "b": [Queued(1)], "c": [Queued(2)]}
        a.cancel()
        await until(lambda: len(seen["c"]) == 2)
        assert seen == {"a": [Queued(0)], "b": [Queued(1), Queued(0)], "c": [Queued(2), Queued(1)]}
        await asyncio.gather(b, c)
    assert [type(message) for message in seen["b"][-4:]] == [Progress] * 4


@pytest.mark.anyio
async def test_engine_sends_the_position_again_after_a_worker_died() -> None:
    seen: list[Queued | Progress] = []
    async with running(model="slow") as engine:
        task = asyncio.create_task(engine.run(job(prompt="tick=0.3"), seen.append))
        await until(lambda: any(isinstance(message, Progress) for message in seen))
        assert seen[:2] == [Queued(0), Progress("job", 1, 4)]
        engine.workers[0].kill("test")
        await task
        assert deaths(engine, "test") == 1
    assert seen.count(Queued(0)) == 2
