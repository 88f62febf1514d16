"""Sends waiting requests their positions in the queue, when they change."""

import asyncio
import time
from collections.abc import Sequence

from app.edits import Queued
from app.engine.fair_queue import FairQueue
from app.engine.supervisor import WorkerSupervisor
from app.engine.ticket import Ticket

PASS_SECONDS = 0.25
"""All changes within this time share one pass over the queue."""

_SHORT_WAIT_SECONDS = 0.2
"""A request that starts sooner gets no position."""


class Positions:
    """Sends `Queued` to the watched tickets that wait, each only when its position differs from the last one sent.

    The cost depends on the number of passes, at most one in `PASS_SECONDS`, and not on the number of watchers. There is
    none while no watched ticket waits.

    Args:
        waiting: the tickets that no worker has.
        workers: the workers, with their tickets.
    """

    def __init__(self, waiting: FairQueue[Ticket], workers: Sequence[WorkerSupervisor]) -> None:
        self._waiting = waiting
        self._workers = workers
        self._watched: set[Ticket] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, ticket: Ticket) -> None:
        """Send this ticket its positions, if it has an `on_progress`."""
        if ticket.on_progress:
            self._watched.add(ticket)

    def remove(self, ticket: Ticket) -> None:
        """Send this ticket no more positions."""
        self._watched.discard(ticket)

    def changed(self) -> None:
        """The queue or the tickets of a worker have changed: send the new positions soon."""
        if self._timer is None and self._watched:
            self._timer = asyncio.get_running_loop().call_later(PASS_SECONDS, self._send_all)

    def _send_all(self) -> None:
        self._timer = None
        waiting = [ticket for ticket in self._watched if not ticket.started]
        if not waiting:
            return
        for worker in self._workers:
            for ahead, ticket in enumerate(worker.tickets.values()):
                self._send(ticket, ahead)
        on_board = sum(len(worker.tickets) for worker in self._workers)
        for ahead, ticket in enumerate(self._waiting.in_turn(), on_board):
            self._send(ticket, ahead)
        if any(ticket.ahead is None for ticket in waiting):
            # These have waited too short for a position.
            self.changed()

    @staticmethod
    def _send(ticket: Ticket, ahead: int) -> None:
        if not ticket.on_progress or ticket.started or ticket.ahead == ahead:
            return
        if time.monotonic() - ticket.enqueued >= _SHORT_WAIT_SECONDS:
            ticket.ahead = ahead
            ticket.on_progress(Queued(ahead))
