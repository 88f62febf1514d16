"""What a Python program imports to talk to a running service: httpx2 and the standard library, no torch, no FastAPI.

    from app.client import Img2Img

    with Img2Img("http://127.0.0.1:8000") as client:
        client.edit("dog.png", "dog wizard", seed=42).save("wizard.png")

Every call raises `Img2ImgError` for what the service refuses, and `NoService` if there is none.
"""

import os
import re
import time
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn, Self

import httpx2

LONGEST_WAIT = 60.0
"""Seconds; a service that says to come back later than that is taken at its word, and the caller is told."""

_CONNECT_SECONDS = 10.0
_POLL_SECONDS = 0.2
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_STAGE = re.compile(r"([\w-]+);dur=([0-9.]+)", re.ASCII)


class NoService(ConnectionError):
    """No service was reached, or none that answers as this one does; the message says what to do."""


class Img2ImgError(Exception):
    """The service refused the request, or could not make the picture. `str()` of it is `detail`.

    Args:
        status: the HTTP status.
        code: the same for the same kind of error, for programs; `unknown` if it was not the service that answered.
        detail: what is wrong, and what to do.
        param: the field at fault, if one is.
        request_id: what the service's log knows the request by.
        retry_after: seconds after which the same request may succeed.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        param: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(status, code, detail, param, request_id, retry_after)
        self.status = status
        self.code = code
        self.detail = detail
        self.param = param
        self.request_id = request_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.detail


@dataclass(frozen=True, slots=True)
class Edited:
    """An answer: `data` is a picture file of `media_type`, 512x512.

    `seed` makes it again; `steps_run` UNet calls started at the noise level `start_timestep` (0 to 999); the prompt was
    `tokens_cut` tokens too long for CLIP. `seconds` holds the time of each stage, in the order of the way.
    """

    data: bytes = field(repr=False)
    media_type: str
    seed: int
    steps_run: int
    start_timestep: float
    tokens_cut: int
    request_id: str
    seconds: dict[str, float]

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the picture to a file, over what was there; returns its path."""
        path = Path(path)
        path.write_bytes(self.data)
        return path


class Img2Img:
    """A service at `base_url`. Keeps its connection open between calls; close it, or use it in a `with`.

    Args:
        base_url: where the service is, as `http://host:port`.
        timeout: seconds to wait for an answer.
        retries: how often a request is sent again that the service was too busy for (503 or 429 with `Retry-After`).
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
        self.base_url = base_url.rstrip("/")
        self.retries = retries
        self._timeout = timeout
        key = os.environ.get("IMG2IMG_API_KEY", "") if api_key is None else api_key
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise ValueError("The API key may hold ASCII letters, digits and signs only.")
        self._client = httpx2.Client(
            base_url=self.base_url,
            headers={"X-API-Key": key} if key else {},
            timeout=httpx2.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS)),
            # A proxy in the environment is for other machines: it would look for the service on its own.
            trust_env=_host(self.base_url) not in _LOOPBACK,
        )

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
        image: bytes | str | PathLike[str] | BinaryIO,
        prompt: str,
        *,
        negative_prompt: str | None = None,
        num_inference_steps: int | None = None,
        strength: float | None = None,
        guidance_scale: float | None = None,
        seed: int | None = None,
        fit: str | None = None,
        output_format: str | None = None,
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

        Raises:
            Img2ImgError: the service refused or failed.
            NoService: there is no service, or it went away.
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
        }
        form = {name: str(value) for name, value in fields.items() if value is not None}
        response = self._post(form, _read(image))
        if "X-Seed" not in response.headers:
            self._stranger()
        return _edited(response)

    def health(self) -> dict[str, Any]:
        """What `/health/ready` says.

        `{"status": "ready", "model": {…}}`, `{"status": "starting"}` or, while it ends, `{"status": "draining"}`.

        Raises:
            NoService: there is no service.
        """
        body = _json_object(self._send("GET", "/health/ready"))
        if body.get("status") not in ("ready", "starting", "draining"):
            self._stranger()
        return body

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
            time.sleep(_POLL_SECONDS)

    def _post(self, form: dict[str, str], image: bytes) -> httpx2.Response:
        """Send the picture, again if the service asks for that; returns only a success."""
        files = {"image": ("image", image, "application/octet-stream")}
        left = self.retries
        while not (response := self._send("POST", "/img2img", data=form, files=files)).is_success:
            error = _error(response, self.base_url)
            wanted = response.status_code in (429, 503) and response.headers.get("X-Should-Retry") != "false"
            if left < 1 or not wanted or error.retry_after is None or error.retry_after > LONGEST_WAIT:
                raise error
            left -= 1
            time.sleep(error.retry_after)
        return response

    def _send(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        try:
            return self._client.request(method, path, **arguments)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise NoService(
                f"No service answers at {self.base_url}: start one with `img2img serve`, or give another URL."
            ) from error
        except httpx2.TimeoutException as error:
            raise NoService(
                f"The service at {self.base_url} did not answer within {self._timeout:g} s. Allow it more time."
            ) from error
        except httpx2.RequestError as error:
            raise NoService(f"The service at {self.base_url} broke off; see its log. ({error})") from error

    def _stranger(self) -> NoReturn:
        raise NoService(f"What answers at {self.base_url} is another program: give the URL of `img2img serve`.")


def _host(base_url: str) -> str:
    try:
        url = httpx2.URL(base_url)
    except httpx2.InvalidURL:
        url = httpx2.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"{base_url} is no http:// or https:// URL.")
    return url.host


def _read(image: bytes | str | PathLike[str] | BinaryIO) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | PathLike):
        return Path(image).read_bytes()
    return image.read()


def _edited(response: httpx2.Response) -> Edited:
    headers = response.headers
    return Edited(
        data=response.content,
        media_type=headers["Content-Type"],
        seed=int(headers["X-Seed"]),
        steps_run=int(headers["X-Steps-Run"]),
        start_timestep=float(headers["X-Start-Timestep"]),
        tokens_cut=int(headers.get("X-Prompt-Tokens-Cut", "0")),
        request_id=headers["X-Request-Id"],
        seconds={stage: float(ms) / 1000 for stage, ms in _STAGE.findall(headers.get("Server-Timing", ""))},
    )


def _error(response: httpx2.Response, base_url: str) -> Img2ImgError:
    """The error of an answer, whether it is the service's problem document or something of a proxy's."""
    problem = _json_object(response)
    after = response.headers.get("Retry-After", "")
    return Img2ImgError(
        status=response.status_code,
        code=problem.get("code", "unknown"),
        detail=problem.get("detail", f"{base_url} answered {response.status_code} {response.reason_phrase}."),
        param=problem.get("param"),
        request_id=response.headers.get("X-Request-Id"),
        retry_after=float(after) if after.isdecimal() else None,
    )


def _json_object(response: httpx2.Response) -> dict[str, Any]:
    """The JSON object that is the body; an empty one if it is something else."""
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
