"""The client for programs that wait."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import httpx2

from .responses import Edited, NoService, Progress, events_of, in_events
from .session import POLL_SECONDS, Edit, Picture, Wire


class Img2Img:
    """A service at `base_url`. Keeps its connection open between calls; close it, or use it in a `with`.

    Args:
        base_url: where the service is, as `http://host:port`.
        timeout: seconds to wait for an answer.
        retries: how often a request is sent again that the service was too busy for: 503 or 429 that says when to
            come back (`Retry-After`, in seconds or as a date), within `LONGEST_WAIT`.
        api_key: for a service that asks for one; by default the variable `IMG2IMG_API_KEY`.

    Raises:
        ValueError: `base_url` is no http:// or https:// URL, or the key holds what no header can carry.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        timeout: float = 600.0,
        retries: int = 2,
        api_key: str | None = None,
    ) -> None:
        self._wire = Wire(base_url, timeout, api_key)
        self.base_url = self._wire.base_url
        self.retries = retries
        self._client = httpx2.Client(**self._wire.options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def edit(
        self,
        image: Picture,
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
        on_progress: Callable[[Progress], None] | None = None,
        previews: bool = False,
    ) -> Edited:
        """Redraw a picture as the prompt says. What is None is left to the service's defaults.

        Args:
            image: a PNG, JPEG or WebP file: its bytes, its path, or the open file.
            prompt: what the picture should become; CLIP reads its first 77 tokens.
            negative_prompt: what to steer away from; has an effect only with `guidance_scale` above 1.
            num_inference_steps: 1 to 50.
            strength: how much is redrawn, in (0, 1]; `int(num_inference_steps * strength)` must be at least 1.
            guidance_scale: 0 to 20.
            seed: 0 to 2**63 - 1; the same gives the same picture.
            fit: `stretch`, `crop` or `pad`.
            output_format: `png`, `webp` or `jpeg`.
            quality: 1 to 100, of a WebP or JPEG.
            on_progress: called as it goes: while it waits, after each step, and with each preview. It begins anew
                when the service got too busy on the way, and the request is sent again.
            previews: whether there are any, for `on_progress`.

        Raises:
            Img2ImgError: the service refused or failed.
            NoService: there is no service, it went away, or what answers is another program.
            OSError: the file cannot be read.
        """
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
        edit = Edit(self._wire, image, fields, self.retries, on_progress, previews)
        while True:
            with self._wire.reached(), self._client.stream("POST", "/img2img", **edit.arguments) as response:
                if in_events(response):
                    for event in events_of(response):
                        if edit.take(event, response):
                            break
                else:
                    response.read()
            if edit.succeeded(response):
                return edit.finished(response)
            time.sleep(edit.pause(response))

    def health(self) -> dict[str, Any]:
        """What `/health/ready` says.

        `{"status": "ready", "model": {…}}`, `{"status": "starting"}`, `{"status": "unsigned"}` if the certificate that
        is to sign pictures has expired or, while it ends, `{"status": "draining"}`.

        Raises:
            NoService: there is no service.
        """
        with self._wire.reached():
            return self._wire.health(self._client.get("/health/ready"))

    def ready(self) -> bool:
        """Whether a picture can be made now; False as well if no service answers."""
        try:
            return bool(self.health()["status"] == "ready")
        except NoService:
            return False

    def wait_until_ready(self, timeout: float = 600.0) -> None:
        """Return as soon as a picture can be made.

        Raises:
            TimeoutError: that was not the case within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while not self.ready():
            if time.monotonic() > deadline:
                raise TimeoutError(f"The service at {self.base_url} was not ready within {timeout:g} s; see its log.")
            time.sleep(POLL_SECONDS)
