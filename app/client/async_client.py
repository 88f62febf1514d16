"""The client for programs on an event loop."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

import httpx2

from .responses import Edited, NoService, Progress, events_of, in_events
from .session import POLL_SECONDS, Edit, Image, Session


class AsyncImg2Img:
    """A service at `base_url`. Keeps its connection open between calls; close it, or use it in an `async with`.

    Args:
        base_url: where the service is, as `http://host:port`.
        timeout: seconds to wait for a response.
        retries: how often a request is sent again when the service is too busy: 503 or 429 with a `Retry-After` of at
            most `LONGEST_WAIT`.
        api_key: for a service that requires one; by default the variable `IMG2IMG_API_KEY`.

    Raises:
        ValueError: `base_url` is not an http:// or https:// URL, or the key has characters that a header cannot hold.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        timeout: float = 600.0,
        retries: int = 2,
        api_key: str | None = None,
    ) -> None:
        self._session = Session(base_url, timeout, api_key)
        self.base_url = self._session.base_url
        self.retries = retries
        self._client = httpx2.AsyncClient(**self._session.options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()

    async def edit(
        self,
        image: Image,
        prompt: str,
        *,
        negative_prompt: str | None = None,
        num_inference_steps: int | None = None,
        strength: float | None = None,
        guidance_scale: float | None = None,
        seed: int | None = None,
        fit: str | None = None,
        output_format: str | None = None,
        quality: int | None = None,
        on_progress: Callable[[Progress], Awaitable[None] | None] | None = None,
        previews: bool = False,
    ) -> Edited:
        """As `Img2Img.edit`; `on_progress` is called on the event loop, and awaited if it is a coroutine function."""
        fields = {
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "num_inference_steps": num_inference_steps,
            "strength": strength,
            "guidance_scale": guidance_scale,
            "seed": seed,
            "fit": fit,
            "output_format": output_format,
            "quality": quality,
        }
        # This reads the image file.
        edit = await asyncio.to_thread(Edit, self._session, image, fields, self.retries, on_progress, previews)
        while True:
            with self._session.connecting():
                async with self._client.stream("POST", "/img2img", **edit.arguments) as response:
                    if in_events(response):
                        async for event in events_of(response):
                            failed = edit.take(event, response)
                            if inspect.isawaitable(edit.callback_result):
                                await edit.callback_result
                            if failed:
                                break
                    else:
                        await response.aread()
            if edit.succeeded(response):
                return edit.finished(response)
            await asyncio.sleep(edit.pause(response))

    async def health(self) -> dict[str, Any]:
        """As `Img2Img.health`."""
        with self._session.connecting():
            return self._session.health(await self._client.get("/health/ready"))

    async def ready(self) -> bool:
        """Whether an image can be made now; False if no service answers."""
        try:
            return bool((await self.health())["status"] == "ready")
        except NoService:
            return False

    async def wait_until_ready(self, timeout: float = 600.0) -> None:  # noqa: ASYNC109  as the other client has it
        """As `Img2Img.wait_until_ready`."""
        deadline = time.monotonic() + timeout
        while not await self.ready():
            if time.monotonic() > deadline:
                raise TimeoutError(f"The service at {self.base_url} was not ready within {timeout:g} s; see its log.")
            await asyncio.sleep(POLL_SECONDS)
