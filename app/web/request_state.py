"""What is kept for each request."""

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

_KEY = "img2img"
"""Of the request's state in its ASGI scope."""


@dataclass(slots=True)
class RequestState:
    """One request.

    Attributes:
        request_id: names it in the log.
        caller: the key or the address that it came from.
        outcome: the status that counts; None if that is the answer's own. The status of a stream of events is sent
            before its outcome is known.
    """

    request_id: str
    caller: str = ""
    outcome: int | None = None


def begin_request(scope: MutableMapping[str, Any], request_id: str) -> RequestState:
    """Give a request its state."""
    state = scope[_KEY] = RequestState(request_id)
    return state


def request_state(scope: MutableMapping[str, Any]) -> RequestState:
    """The state of a request, by its ASGI scope; a new one if it has none: a WebSocket has no id."""
    found = scope.get(_KEY)
    return found if isinstance(found, RequestState) else begin_request(scope, "")
