"""What both clients have in common: what is sent, when it is sent again, and what becomes of the answer."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import httpx2

from .responses import (
    EVENT_NAMES,
    EVENTS,
    Edited,
    Img2ImgError,
    NoService,
    Progress,
    in_events,
    json_object,
    read_event,
    read_picture,
    read_refusal,
)

LONGEST_WAIT = 60.0
"""Seconds; a service that says to come back later than that is taken at its word, and the caller is told."""

CONNECT_SECONDS = 10.0
POLL_SECONDS = 0.2
_LOOPBACK = ("127.0.0.1", "localhost", "::1")

Picture = bytes | str | PathLike[str] | BinaryIO
"""A PNG, JPEG or WebP file: its bytes, its path, or the open file."""


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
        raise NoService(
            f"What answers at {self.base_url} is another program: give the URL of `img2img serve`, without a route."
        )

    @contextmanager
    def understood(self) -> Iterator[None]:
        """Turns what is raised on reading an answer that no service of this kind gives into `NoService`."""
        try:
            yield
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
            self.stranger()

    def health(self, response: httpx2.Response) -> dict[str, Any]:
        """What `/health/ready` said."""
        body = json_object(response)
        status, model = body.get("status"), body.get("model")
        ready = status == "ready" and isinstance(model, dict) and {"model", "device"} <= model.keys()
        if not ready and status not in ("starting", "draining", "unsigned"):
            self.stranger()
        return body


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
        on_progress: Callable[[Progress], object] | None,
        previews: bool,
    ) -> None:
        self._wire = wire
        self._retries = retries
        # One who did not ask for events may get them all the same, from another program.
        self._on_progress = on_progress or (lambda progress: None)
        self.shown: object = None
        """What `on_progress` gave back for the last event."""
        self._heard: set[str] = set()
        self._edited: Edited | None = None
        self._failure: Img2ImgError | None = None
        self.arguments: dict[str, Any] = {
            "data": {name: str(value) for name, value in fields.items() if value is not None},
            "files": {"image": ("image", _read(image), "application/octet-stream")},
        }
        if on_progress:
            self.arguments["headers"] = {"Accept": EVENTS, **({"X-Previews": "1"} if previews else {})}

    def take(self, event: httpx2.ServerSentEvent, response: httpx2.Response) -> bool:
        """One event of an answer `in_events`. Returns whether it says that the work failed: then it was the last."""
        self.shown = None
        # By the standard an event without data is none.
        if not event.data:
            return False
        self._heard.add(event.event)
        with self._wire.understood():
            said = read_event(event, self._wire.base_url, response.headers.get("X-Request-Id"))
        match said:
            case Progress():
                self.shown = self._on_progress(said)
            case Edited():
                self._edited = said
            case Img2ImgError():
                self._failure = said
        return self._failure is not None

    def succeeded(self, response: httpx2.Response) -> bool:
        """Whether neither the status nor an event says that it failed."""
        return response.is_success and self._failure is None

    def pause(self, response: httpx2.Response) -> float:
        """Seconds after which to send again what did not succeed. Raises the answer's error if that is of no use."""
        error = self._failure or read_refusal(response, self._wire.base_url)
        if error.status == 404:
            self._wire.stranger()
        wanted = error.status in (429, 503) and response.headers.get("X-Should-Retry") != "false"
        if self._retries < 1 or not wanted or error.retry_after is None or error.retry_after > LONGEST_WAIT:
            raise error
        self._retries -= 1
        self._heard, self._edited, self._failure = set(), None, None
        return error.retry_after

    def finished(self, response: httpx2.Response) -> Edited:
        """The outcome, once all of an answer that succeeded is there. Raises `NoService` if there is none in it."""
        if self._edited:
            return self._edited
        if in_events(response):
            if self._heard and not self._heard & EVENT_NAMES:
                self._wire.stranger()
            # A proxy ends an answer as if that were all of it when the service behind it is gone.
            raise NoService(
                f"The answer of {self._wire.base_url} broke off before the picture: see the log of the service, "
                "and of a proxy if one is between."
            )
        with self._wire.understood():
            return read_picture(response)


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
