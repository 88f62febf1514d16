"""The shared part of both clients: what is sent, when it is sent again, and how responses are read."""

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
    read_refusal,
    read_result,
)

LONGEST_WAIT = 60.0
"""Seconds. If the service says to retry later than that, the client raises the error instead."""

CONNECT_SECONDS = 10.0
POLL_SECONDS = 0.2
_LOOPBACK = ("127.0.0.1", "localhost", "::1")

Image = bytes | str | PathLike[str] | BinaryIO
"""A PNG, JPEG or WebP file: its bytes, its path, or the open file."""


class Session:
    """What a client knows about its service.

    Args:
        base_url: as `http://host:port`.
        timeout: seconds to wait for an answer.
        api_key: None takes the variable `IMG2IMG_API_KEY`.

    Raises:
        ValueError: `base_url` is not an http:// or https:// URL, or the key has characters that a header cannot hold.
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
            # A proxy in the environment is for other machines: it would look for the service on its own host.
            "trust_env": _host(self.base_url) not in _LOOPBACK,
        }

    @contextmanager
    def connecting(self) -> Iterator[None]:
        """Turn errors of the connection into `NoService`."""
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

    def not_this_service(self) -> NoReturn:
        """Raise `NoService`: the server is another program."""
        raise NoService(
            f"The server at {self.base_url} is another program: give the URL of `img2img serve`, without a path."
        )

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn errors of reading a response into `NoService`: this service does not send such a response."""
        try:
            yield
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
            self.not_this_service()

    def health(self, response: httpx2.Response) -> dict[str, Any]:
        """Read the response of `/health/ready`."""
        body = json_object(response)
        status, model = body.get("status"), body.get("model")
        ready = status == "ready" and isinstance(model, dict) and {"model", "device"} <= model.keys()
        if not ready and status not in ("starting", "draining", "unsigned"):
            self.not_this_service()
        return body


class Edit:
    """One edit: its request, and what to do with each response.

    Args:
        session: the service.
        image: the image file.
        fields: the fields of the form; None leaves a field to the service's default.
        retries: how often the request may be sent again.
        on_progress: called with the progress.
        previews: whether the progress has previews.
    """

    def __init__(
        self,
        session: Session,
        image: Image,
        fields: Mapping[str, Any],
        retries: int,
        on_progress: Callable[[Progress], object] | None,
        previews: bool,
    ) -> None:
        self._session = session
        self._retries = retries
        # Another program may send events that were not requested.
        self._on_progress = on_progress or (lambda progress: None)
        self.callback_result: object = None
        """What `on_progress` returned for the last event."""
        self._event_names: set[str] = set()
        self._edited: Edited | None = None
        self._failure: Img2ImgError | None = None
        self.arguments: dict[str, Any] = {
            "data": {name: str(value) for name, value in fields.items() if value is not None},
            "files": {"image": ("image", _read(image), "application/octet-stream")},
        }
        if on_progress:
            self.arguments["headers"] = {"Accept": EVENTS, **({"X-Previews": "1"} if previews else {})}

    def take(self, event: httpx2.ServerSentEvent, response: httpx2.Response) -> bool:
        """Handle one event. Returns whether it is an error, which is the last event."""
        self.callback_result = None
        # The standard says to ignore an event without data.
        if not event.data:
            return False
        self._event_names.add(event.event)
        with self._session.reading():
            value = read_event(event, self._session.base_url, response.headers.get("X-Request-Id"))
        match value:
            case Progress():
                self.callback_result = self._on_progress(value)
            case Edited():
                self._edited = value
            case Img2ImgError():
                self._failure = value
        return self._failure is not None

    def succeeded(self, response: httpx2.Response) -> bool:
        """Whether neither the status nor an event is an error."""
        return response.is_success and self._failure is None

    def pause(self, response: httpx2.Response) -> float:
        """Seconds after which to send a failed request again. Raises its error if that is of no use."""
        error = self._failure or read_refusal(response, self._session.base_url)
        # The service has this route, and takes POST there.
        if error.status in (404, 405, 501):
            self._session.not_this_service()
        retryable = error.status in (429, 503) and response.headers.get("X-Should-Retry") != "false"
        if self._retries < 1 or not retryable or error.retry_after is None or error.retry_after > LONGEST_WAIT:
            raise error
        self._retries -= 1
        self._event_names, self._edited, self._failure = set(), None, None
        return error.retry_after

    def finished(self, response: httpx2.Response) -> Edited:
        """The result, once all of a response is read. Raises `NoService` if it has none."""
        if self._edited:
            return self._edited
        if in_events(response):
            if self._event_names and not self._event_names & EVENT_NAMES:
                self._session.not_this_service()
            # When the service behind a proxy ends, the proxy ends the response as if it were complete.
            raise NoService(
                f"The response of {self._session.base_url} ended before the image: see the log of the service, "
                "and of the proxy if there is one."
            )
        with self._session.reading():
            return read_result(response)


def _host(base_url: str) -> str:
    try:
        url = httpx2.URL(base_url)
    except httpx2.InvalidURL:
        url = httpx2.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"{base_url} is not an http:// or https:// URL.")
    return url.host


def _read(image: Image) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | PathLike):
        return Path(image).read_bytes()
    return image.read()
