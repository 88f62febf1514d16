"""Running requests of the web UI's clients: progress, previews, interruption."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager

from app.edits import EditedImage, EncodedPreview, Queued, StepDone
from app.errors import Interrupted
from app.web.disconnect import gather_or_cancel


class Run:
    """One call of `/img2img`, of one or several images."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.done = 0
        self.preview: bytes | None = None
        self.interrupted = False
        self._started = time.monotonic()
        self._tasks: list[asyncio.Task[list[EditedImage]]] = []

    @property
    def progress(self) -> float:
        """0 to 1."""
        return self.done / self.steps

    @property
    def seconds_left(self) -> float:
        """Estimated from the steps so far; 0 before the first one."""
        spent = time.monotonic() - self._started
        return spent * (self.steps - self.done) / self.done if self.done else 0.0

    def interrupt(self) -> None:
        """End it now."""
        self.interrupted = True
        for task in self._tasks:
            task.cancel()

    async def images(self, *watched: AsyncGenerator[Queued | StepDone | EditedImage, None]) -> list[EditedImage]:
        """All images.

        Raises:
            Interrupted: `interrupt` was called.
            ServiceError: one of them failed; the others are cancelled.
        """
        task = asyncio.create_task(gather_or_cancel(*map(self._follow, watched)))
        self._tasks.append(task)
        try:
            return await task
        except asyncio.CancelledError:
            if self.interrupted:
                raise Interrupted("The request was interrupted.") from None
            raise

    async def _follow(self, watched: AsyncGenerator[Queued | StepDone | EditedImage, None]) -> EditedImage:
        async with aclosing(watched):
            async for seen in watched:
                match seen:
                    case StepDone(preview=EncodedPreview(data=data)):
                        self.preview = data
                    case StepDone():
                        self.done += 1
                    case EditedImage():
                        return seen
        raise AssertionError("the image comes last")  # pragma: no cover


class Runs:
    """The running requests of all clients."""

    def __init__(self) -> None:
        self._of: dict[str, list[Run]] = {}

    @contextmanager
    def running(self, caller: str, steps: int) -> Iterator[Run]:
        """Keeps a run of a client inside the `with` block."""
        run = Run(steps)
        self._of.setdefault(caller, []).append(run)
        try:
            yield run
        finally:
            self._of[caller].remove(run)
            if not self._of[caller]:
                del self._of[caller]

    def of(self, caller: str) -> list[Run]:
        """The runs of a client, the oldest one first."""
        return list(self._of.get(caller, ()))
