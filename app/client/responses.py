"""Reads responses into values. The server may be another program: each response is checked."""

import base64
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from os import PathLike
from pathlib import Path
from time import time
from typing import Any

import httpx2

EVENTS = "text/event-stream"
EVENT_NAMES = frozenset({"waiting", "step", "picture", "error"})
"""The events that are read; a newer service may send others too."""

EVENT_BYTES = 16 << 20
"""The largest event. An image that does not compress is a PNG of 0.8 MB, and in base64 more than 1 MiB."""

_STAGE = re.compile(r"([\w-]+);dur=([0-9]{1,9}(?:\.[0-9]{1,9})?)(?![\w.])", re.ASCII)
_IMAGE = re.compile(r"image/[\w.+-]+", re.ASCII)


class NoService(ConnectionError):
    """No service was reached, or the server is another program; the message says what to do."""


class Img2ImgError(Exception):
    """The service refused the request, or could not make the image. `str()` of it is `detail`.

    Args:
        status: the HTTP status.
        code: the kind of the error, for programs; `unknown` if a proxy answered instead of the service.
        detail: what is wrong, and what to do.
        param: the field at fault, if there is one.
        request_id: the id of the request in the service's log.
        retry_after: seconds, 0 or more, after which the same request may succeed; None if that is not known.
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
    """A result: `data` is an image file of `media_type`, 512x512.

    The same `seed` makes it again. `steps_run` UNet calls started at the noise level `start_timestep` (0 to 999). The
    prompt was `tokens_cut` tokens too long for CLIP. `seconds` has the time of each stage, in their order.
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
        """Write the image to a file, which is overwritten; returns its path."""
        path = Path(path)
        path.write_bytes(self.data)
        return path


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of an edit: it waits behind `ahead` others, or `step` of `steps` UNet calls are done.

    `preview` is a JPEG file of the image as predicted at that step. It comes by itself, if previews were requested.
    """

    ahead: int | None = None
    step: int = 0
    steps: int = 0
    preview: bytes | None = field(default=None, repr=False)


def in_events(response: httpx2.Response) -> bool:
    """Whether a response is a stream of events."""
    return response.is_success and _media_type(response.headers.get("Content-Type", "")) == EVENTS


def events_of(response: httpx2.Response) -> httpx2.EventSource:
    """The events of a response, for `for` and `async for`, by the rules of the HTML standard."""
    # The standard says UTF-8, whatever the header says, and allows a byte order mark.
    response.encoding = "utf-8-sig"
    return httpx2.EventSource(response, EVENT_BYTES)


def read_event(
    event: httpx2.ServerSentEvent, base_url: str, request_id: str | None
) -> Progress | Edited | Img2ImgError | None:
    """The value of an event; None if its name is not one of `EVENT_NAMES`.

    Raises:
        LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError: it is not an event of this
            service.
    """
    if event.event not in EVENT_NAMES:
        return None
    body: Any = event.json()
    match event.event:
        case "waiting":
            return Progress(ahead=_natural(body["ahead"]))
        case "step":
            preview = _from_data_url(body["preview"])[1] if "preview" in body else None
            return Progress(step=_natural(body["step"]), steps=_natural(body["steps"]), preview=preview)
        case "picture":
            media_type, data = _from_data_url(body["image"])
            return Edited(
                data=data,
                media_type=media_type,
                seed=_natural(body["seed"]),
                steps_run=_natural(body["steps_run"]),
                start_timestep=_finite(body["start_timestep"]),
                tokens_cut=_natural(body["tokens_cut"]),
                request_id=request_id or "",
                seconds={stage: _finite(seconds) for stage, seconds in body["seconds"].items()},
            )
    # The one that is left: `error`.
    status = _natural(body["status"])
    if not 400 <= status <= 599:
        raise ValueError(f"{status} is the status of no error.")
    return _refusal(body, status, f"{base_url} answered {status}.", request_id, _wait(body.get("retry_after")))


def read_result(response: httpx2.Response) -> Edited:
    """The result in a response without events, which has been read.

    Raises:
        LookupError, ValueError, ArithmeticError: it is not a response of this service.
    """
    headers = response.headers
    return Edited(
        data=response.content,
        media_type=_image_type(_media_type(headers["Content-Type"])),
        seed=_natural(headers["X-Seed"]),
        steps_run=_natural(headers["X-Steps-Run"]),
        start_timestep=_finite(headers["X-Start-Timestep"]),
        tokens_cut=_natural(headers.get("X-Prompt-Tokens-Cut", "0")),
        request_id=headers.get("X-Request-Id", ""),
        # Proxies add entries of their own.
        seconds={stage: float(ms) / 1000 for stage, ms in _STAGE.findall(headers.get("Server-Timing", ""))},
    )


def read_refusal(response: httpx2.Response, base_url: str) -> Img2ImgError:
    """The error in a response: the service's problem document, or a proxy's error."""
    answered = f"{response.status_code} {response.reason_phrase}".rstrip()
    return _refusal(
        json_object(response),
        response.status_code,
        f"{base_url} answered {answered}.",
        response.headers.get("X-Request-Id"),
        _retry_after(response.headers.get("Retry-After", "")),
    )


def json_object(response: httpx2.Response) -> dict[str, Any]:
    """The JSON object in the body; empty if the body is anything else."""
    try:
        body = response.json()
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _refusal(
    problem: Mapping[str, Any], status: int, default_detail: str, request_id: str | None, retry_after: float | None
) -> Img2ImgError:
    # Other programs have members of the same names, with lists and numbers as values.
    texts = {name: value for name, value in problem.items() if isinstance(value, str) and value}
    return Img2ImgError(
        status=status,
        code=texts.get("code", "unknown"),
        detail=texts.get("detail", default_detail),
        param=texts.get("param"),
        request_id=request_id,
        retry_after=retry_after,
    )


def _retry_after(value: str) -> float | None:
    """Seconds in the header, or until its date (RFC 9110, section 10.2.3); None if it has neither."""
    if value.isdecimal():
        return _wait(float(value))
    try:
        date = parsedate_to_datetime(value)
        # A date without a zone is in UTC, as is the oldest of HTTP's three formats.
        return _wait((date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time())
    except (ValueError, OverflowError):
        return None


def _wait(seconds: object) -> float | None:
    """A finite number of seconds, 0 or more; None for anything else."""
    try:
        return max(0.0, _finite(seconds))
    except (TypeError, ValueError, OverflowError):
        return None


def _natural(value: Any) -> int:
    """A count or a seed, from JSON or a header."""
    number = int(value)
    if not 0 <= number < 1 << 63:
        raise ValueError(f"{number} is out of range.")
    return number


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} is not finite.")
    return number


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _image_type(media_type: str) -> str:
    """The same media type, if it is an image's: it becomes the extension of a file name."""
    if not _IMAGE.fullmatch(media_type):
        raise ValueError(f"{media_type} is not an image type.")
    return media_type


def _from_data_url(url: Any) -> tuple[str, bytes]:
    """The media type and the bytes of a data URL."""
    head, _, data = url.partition(",")
    media_type = _image_type(head.removeprefix("data:").removesuffix(";base64"))
    return media_type, base64.b64decode(data, validate=True)
