"""What both clients have in common: what is sent, what comes back, and what it means."""

import base64
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import httpx2

LONGEST_WAIT = 60.0
"""Seconds; a service that says to come back later than that is taken at its word, and the caller is told."""

CONNECT_SECONDS = 10.0
POLL_SECONDS = 0.2
EVENTS = "text/event-stream"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_STAGE = re.compile(r"([\w-]+);dur=([0-9.]+)", re.ASCII)

Picture = bytes | str | PathLike[str] | BinaryIO
"""A PNG, JPEG or WebP file: its bytes, its path, or the open file."""


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


@dataclass(frozen=True, slots=True)
class Progress:
    """How an edit goes: it waits behind `ahead` others, or `step` of `steps` UNet calls are done.

    `preview` is a JPEG file of the picture as it was promised at that step; it comes by itself, if it was asked for.
    """

    ahead: int | None = None
    step: int = 0
    steps: int = 0
    preview: bytes | None = field(default=None, repr=False)


class Wire:
    """What a client knows of its service.

    Args:
        base_url: as `http://host:port`.
        timeout: seconds to wait for an answer.
        api_key: None takes the variable `IMG2IMG_API_KEY`.

    Raises:
        ValueError: `base_url` is no http:// or https:// URL, or the key holds what no header can carry.
    """

    def __init__(self, base_url: str, timeout: float, api_key: str | None) -> None:
        self.base_url = base_url.rstrip("/")
        self.timeout = timeout
        key = os.environ.get("IMG2IMG_API_KEY", "") if api_key is None else api_key
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise ValueError("The API key may hold ASCII letters, digits and signs only.")
        self.options: dict[str, Any] = {
            "base_url": self.base_url,
            "headers": {"X-API-Key": key} if key else {},
            "timeout": httpx2.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS)),
            # A proxy in the environment is for other machines: it would look for the service on its own.
            "trust_env": _host(self.base_url) not in _LOOPBACK,
        }

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Turns what happens on the way into `NoService`."""
        try:
            yield
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise NoService(
                f"No service answers at {self.base_url}: start one with `img2img serve`, or give another URL."
            ) from error
        except httpx2.TimeoutException as error:
            raise NoService(
                f"The service at {self.base_url} did not answer within {self.timeout:g} s. Allow it more time."
            ) from error
        except httpx2.RequestError as error:
            raise NoService(f"The service at {self.base_url} broke off; see its log. ({error})") from error

    def stranger(self) -> NoReturn:
        """Something answered, but no service of this kind."""
        raise NoService(f"What answers at {self.base_url} is another program: give the URL of `img2img serve`.")

    def health(self, response: httpx2.Response) -> dict[str, Any]:
        """What `/health/ready` said."""
        body = _json_object(response)
        if body.get("status") not in ("ready", "starting", "draining"):
            self.stranger()
        return body

    def error(self, response: httpx2.Response) -> Img2ImgError:
        """The error of an answer, whether it is the service's problem document or something of a proxy's."""
        after = response.headers.get("Retry-After", "")
        return _refusal(
            _json_object(response),
            response.status_code,
            f"{self.base_url} answered {response.status_code} {response.reason_phrase}.",
            response.headers.get("X-Request-Id"),
            float(after) if after.isdecimal() else None,
        )


class Edit:
    """One edit: what is sent for it, and what is to be done with each answer.

    Args:
        wire: where it goes.
        image: the picture.
        fields: of the form; None leaves one to the service's defaults.
        retries: how often it may be sent again.
        on_progress: told how it goes, if given.
        previews: whether it is to be shown, too.
    """

    def __init__(
        self,
        wire: Wire,
        image: Picture,
        fields: Mapping[str, Any],
        retries: int,
        on_progress: Callable[[Progress], None] | None,
        previews: bool,
    ) -> None:
        self._wire = wire
        self._retries = retries
        self._on_progress = on_progress
        self._event = ""
        self._edited: Edited | None = None
        self.arguments: dict[str, Any] = {
            "data": {name: str(value) for name, value in fields.items() if value is not None},
            "files": {"image": ("image", _read(image), "application/octet-stream")},
        }
        if on_progress:
            self.arguments["headers"] = {"Accept": EVENTS, **({"X-Previews": "1"} if previews else {})}

    def pause(self, response: httpx2.Response) -> float:
        """Seconds after which to send it again. Raises the answer's error if that is of no use."""
        error = self._wire.error(response)
        wanted = response.status_code in (429, 503) and response.headers.get("X-Should-Retry") != "false"
        if self._retries < 1 or not wanted or error.retry_after is None or error.retry_after > LONGEST_WAIT:
            raise error
        self._retries -= 1
        return error.retry_after

    def line(self, line: str, response: httpx2.Response) -> None:
        """One line of an answer `in_events`. Raises `Img2ImgError` if it says that the work failed."""
        name, _, value = line.partition(": ")
        if name == "event":
            self._event = value
        elif name == "data":
            self._take(json.loads(value), response)

    def _take(self, body: dict[str, Any], response: httpx2.Response) -> None:
        assert self._on_progress  # noqa: S101  else nobody asked for events
        request_id = response.headers.get("X-Request-Id", "")
        match self._event:
            case "waiting":
                self._on_progress(Progress(ahead=body["ahead"]))
            case "step":
                preview = _from_data_url(body["preview"])[1] if "preview" in body else None
                self._on_progress(Progress(step=body["step"], steps=body["steps"], preview=preview))
            case "picture":
                media_type, data = _from_data_url(body.pop("image"))
                self._edited = Edited(data=data, media_type=media_type, request_id=request_id, **body)
            case "error":
                raise _refusal(body, body["status"], body["detail"], request_id, body.get("retry_after"))

    def finished(self, response: httpx2.Response) -> Edited:
        """The outcome, once all of a successful answer is there. Raises `NoService` if there is none in it."""
        if self._edited:
            return self._edited
        headers = response.headers
        if "X-Seed" not in headers:
            self._wire.stranger()
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


def in_events(response: httpx2.Response) -> bool:
    """Whether an answer comes as lines of events."""
    return response.is_success and response.headers.get("Content-Type", "").startswith(EVENTS)


def _host(base_url: str) -> str:
    try:
        url = httpx2.URL(base_url)
    except httpx2.InvalidURL:
        url = httpx2.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"{base_url} is no http:// or https:// URL.")
    return url.host


def _read(image: Picture) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | PathLike):
        return Path(image).read_bytes()
    return image.read()


def _from_data_url(url: str) -> tuple[str, bytes]:
    """Its media type, and what it holds."""
    head, _, data = url.partition(",")
    return head.removeprefix("data:").removesuffix(";base64"), base64.b64decode(data)


def _refusal(
    problem: Mapping[str, Any], status: int, otherwise: str, request_id: str | None, retry_after: float | None
) -> Img2ImgError:
    return Img2ImgError(
        status=status,
        code=problem.get("code", "unknown"),
        detail=problem.get("detail", otherwise),
        param=problem.get("param"),
        request_id=request_id,
        retry_after=retry_after,
    )


def _json_object(response: httpx2.Response) -> dict[str, Any]:
    """The JSON object that is the body; an empty one if it is something else."""
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
