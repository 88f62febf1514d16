"""What comes back, as values. Whatever answers may be another program: nothing it says is believed unread."""

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
"""Those that are read; a newer service may send others, too."""

EVENT_BYTES = 16 << 20
"""The most that one event may hold. A picture that nothing compresses is a PNG of 0.8 MB, in base64 more than 1 MiB."""

_STAGE = re.compile(r"([\w-]+);dur=([0-9]{1,9}(?:\.[0-9]{1,9})?)(?![\w.])", re.ASCII)
_IMAGE = re.compile(r"image/[\w.+-]+", re.ASCII)


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
        retry_after: seconds, 0 or more, after which the same request may succeed; None if nobody knows.
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


def in_events(response: httpx2.Response) -> bool:
    """Whether an answer comes as events."""
    return response.is_success and _media_type(response.headers.get("Content-Type", "")) == EVENTS


def events_of(response: httpx2.Response) -> httpx2.EventSource:
    """The events of an answer `in_events`, for `for` and `async for`, by the rules of the HTML standard."""
    # By the standard they are in UTF-8, whatever the header says, and a byte order mark may come first.
    response.encoding = "utf-8-sig"
    return httpx2.EventSource(response, EVENT_BYTES)


def read_event(
    event: httpx2.ServerSentEvent, base_url: str, request_id: str | None
) -> Progress | Edited | Img2ImgError | None:
    """What an event says; None if its name is not one of `EVENT_NAMES`.

    Raises:
        LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError: no service of this kind
            says that.
    """
    if event.event not in EVENT_NAMES:
        return None
    body: Any = event.json()
    match event.event:
        case "waiting":
            return Progress(ahead=_whole(body["ahead"]))
        case "step":
            preview = _from_data_url(body["preview"])[1] if "preview" in body else None
            return Progress(step=_whole(body["step"]), steps=_whole(body["steps"]), preview=preview)
        case "picture":
            media_type, data = _from_data_url(body["image"])
            return Edited(
                data=data,
                media_type=media_type,
                seed=_whole(body["seed"]),
                steps_run=_whole(body["steps_run"]),
                start_timestep=_finite(body["start_timestep"]),
                tokens_cut=_whole(body["tokens_cut"]),
                request_id=request_id or "",
                seconds={stage: _finite(seconds) for stage, seconds in body["seconds"].items()},
            )
    # The one that is left: `error`.
    status = _whole(body["status"])
    if not 400 <= status <= 599:
        raise ValueError(f"{status} is the status of no error.")
    return _refusal(body, status, f"{base_url} answered {status}.", request_id, _wait(body.get("retry_after")))


def read_picture(response: httpx2.Response) -> Edited:
    """A picture that came without events, all of it read.

    Raises:
        LookupError, ValueError, ArithmeticError: no service of this kind answers so.
    """
    headers = response.headers
    return Edited(
        data=response.content,
        media_type=_image_type(_media_type(headers["Content-Type"])),
        seed=_whole(headers["X-Seed"]),
        steps_run=_whole(headers["X-Steps-Run"]),
        start_timestep=_finite(headers["X-Start-Timestep"]),
        tokens_cut=_whole(headers.get("X-Prompt-Tokens-Cut", "0")),
        request_id=headers.get("X-Request-Id", ""),
        # Proxies put entries of theirs beside the service's.
        seconds={stage: float(ms) / 1000 for stage, ms in _STAGE.findall(headers.get("Server-Timing", ""))},
    )


def read_refusal(response: httpx2.Response, base_url: str) -> Img2ImgError:
    """The error of an answer, whether it is the service's problem document or something of a proxy's."""
    answered = f"{response.status_code} {response.reason_phrase}".rstrip()
    return _refusal(
        json_object(response),
        response.status_code,
        f"{base_url} answered {answered}.",
        response.headers.get("X-Request-Id"),
        _retry_after(response.headers.get("Retry-After", "")),
    )


def json_object(response: httpx2.Response) -> dict[str, Any]:
    """The JSON object that is the body; an empty one if it is something else."""
    try:
        body = response.json()
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _refusal(
    problem: Mapping[str, Any], status: int, otherwise: str, request_id: str | None, retry_after: float | None
) -> Img2ImgError:
    # Other programs have members of the same names, with lists and numbers in them.
    said = {name: value for name, value in problem.items() if isinstance(value, str) and value}
    return Img2ImgError(
        status=status,
        code=said.get("code", "unknown"),
        detail=said.get("detail", otherwise),
        param=said.get("param"),
        request_id=request_id,
        retry_after=retry_after,
    )


def _retry_after(value: str) -> float | None:
    """Seconds, as the header says them or until the date in it (RFC 9110, section 10.2.3); None if it says nothing."""
    if value.isdecimal():
        return _wait(float(value))
    try:
        date = parsedate_to_datetime(value)
        # A date without a zone is in UTC: so is the oldest of the three forms that HTTP knows.
        return _wait((date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time())
    except (ValueError, OverflowError):
        return None


def _wait(seconds: object) -> float | None:
    """Seconds that can be waited; None if these cannot."""
    try:
        return max(0.0, _finite(seconds))
    except (TypeError, ValueError, OverflowError):
        return None


def _whole(value: Any) -> int:
    """A count or a seed, of JSON or of a header."""
    number = int(value)
    if not 0 <= number < 1 << 63:
        raise ValueError(f"{number} is out of range.")
    return number


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} is no number.")
    return number


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _image_type(media_type: str) -> str:
    """The same, if it is an image's: it becomes the ending of a file's name."""
    if not _IMAGE.fullmatch(media_type):
        raise ValueError(f"{media_type} is no picture.")
    return media_type


def _from_data_url(url: Any) -> tuple[str, bytes]:
    """Its media type, and what it holds."""
    head, _, data = url.partition(",")
    media_type = _image_type(head.removeprefix("data:").removesuffix(";base64"))
    return media_type, base64.b64decode(data, validate=True)
