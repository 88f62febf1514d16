"""The blocking client."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import httpx2

from .responses import Edited, NoService, Progress, events_of, in_events
from .session import POLL_SECONDS, Edit, Image, Session


class Img2Img:
    """A service at `base_url`. Keeps its connection open between calls; close it, or use it in a `with`.

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
        self._client = httpx2.Client(**self._session.options)

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
        on_progress: Callable[[Progress], None] | None = None,
        previews: bool = False,
    ) -> Edited:
        """Redraw an image as the prompt says. An argument that is None is left to the service's default.

        Args:
            image: a PNG, JPEG or WebP file: its bytes, its path, or the open file.
            prompt: what the image should become; CLIP reads its first 77 tokens.
            negative_prompt: what to avoid; has an effect only with `guidance_scale` above 1.
            num_inference_steps: 1 to 50.
            strength: how much is redrawn, in (0, 1]; `int(num_inference_steps * strength)` must be at least 1.
            guidance_scale: 0 to 20.
            seed: 0 to 2**63 - 1; the same seed gives the same image.
            fit: `stretch`, `crop` or `pad`.
            output_format: `png`, `webp` or `jpeg`.
            quality: 1 to 100, of a WebP or JPEG.
            on_progress: called while the request waits, after each step, and with each preview. It starts again when
                the request is sent again.
            previews: whether `on_progress` gets previews.

        Raises:
            Img2ImgError: the service refused the request, or failed.
            NoService: no service answers, the connection broke, or the server is another program.
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
        edit = Edit(self._session, image, fields, self.retries, on_progress, previews)
        while True:
            with self._session.connecting(), self._client.stream("POST", "/img2img", **edit.arguments) as response:
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
        """The response of `/health/ready`.

        `{"status": "ready", "model": {…}}`, `{"status": "starting"}`, `{"status": "unsigned"}` if the certificate that
        signs images has expired, or `{"status": "draining"}` while it shuts down.

        Raises:
            NoService: no service answers.
        """
        with self._session.connecting():
            return self._session.health(self._client.get("/health/ready"))

    def ready(self) -> bool:
        """Whether an image can be made now; False if no service answers."""
        try:
            return bool(self.health()["status"] == "ready")
        except NoService:
            return False

    def wait_until_ready(self, timeout: float = 600.0) -> None:
        """Return as soon as an image can be made.

        Raises:
            TimeoutError: the service was not ready within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while not self.ready():
            if time.monotonic() > deadline:
                raise TimeoutError(f"The service at {self.base_url} was not ready within {timeout:g} s; see its log.")
            time.sleep(POLL_SECONDS)
