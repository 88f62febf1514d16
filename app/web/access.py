"""Authentication by API key, and the check of browsers' origins. Pure ASGI, in front of routing.

Every path needs a key unless its dialect lists it as open: a route that is added later needs one, and so does a path
without a route.
"""

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import OriginNotAllowed, ServiceError, Unauthorized
from app.web.api_keys import Keys, sent_key
from app.web.error_responses import ErrorResponses
from app.web.request_state import request_state

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_POLICY_VIOLATION = 1008
_PRIVATE = (".localhost", ".local", ".internal", ".home.arpa", ".test")
"""RFC 6761, 6762 and 8375, and what ICANN has set aside."""


class Gate:
    """Refuses requests without a key, where keys are set, and those that a web page of a foreign origin sends.

    Routes find the client as `RequestState.caller`: its key, else its address.

    Args:
        app: the next ASGI app.
        keys: if there are none, every request passes.
        origins: may send requests besides the service's own origin, as browsers write them.
        errors: answers the requests that are refused.
        open_paths: can be read without a key.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys,
        origins: frozenset[str],
        errors: ErrorResponses,
        open_paths: frozenset[str],
    ) -> None:
        self.app = app
        self.keys = keys
        self.origins = origins
        self.errors = errors
        self.open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        try:
            request_state(scope).caller = self._admit(scope)
        except ServiceError as error:
            if scope["type"] == "websocket":
                self.errors.count(error)
                # Before it is accepted, that is a 403 on the wire.
                await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": error.message})
            else:
                await self.errors.response(error, scope)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _admit(self, scope: Scope) -> str:
        """The client's key or address. Raises `Unauthorized` or `OriginNotAllowed`."""
        headers = Headers(scope=scope)
        changes = scope["type"] == "websocket" or scope["method"] not in _SAFE_METHODS
        if changes and not self._welcome(headers.get("origin"), headers.get("host", "")):
            raise OriginNotAllowed(
                "A web page of this origin may not use the service. Name the origin in IMG2IMG_CORS_ORIGINS."
            )
        key = sent_key(scope["headers"])
        if not self.keys or (not changes and scope["path"] in self.open_paths):
            return f"address {_network(scope)}"
        found = self.keys.find(key) if key else None
        if found is None:
            raise Unauthorized(
                f"{'This API key is not known here' if key else 'An API key is needed'}. "
                "Send one as 'Authorization: Bearer <key>' or as 'X-API-Key: <key>'; "
                "the client and 'img2img edit' take theirs from IMG2IMG_API_KEY."
            )
        return f"key {found}"

    def _welcome(self, origin: str | None, host: str) -> bool:
        """Only browsers send an origin: without one, there is no page that could act for its visitor.

        The service's own origin is what the browser took for its address. A stranger can have a public name of his own
        point here (DNS rebinding), so that his page seems to be the service's: without keys, no such name is believed.
        """
        if origin is None or origin in self.origins:
            return True
        try:
            url = urlsplit(origin)
        except ValueError:
            return False
        own = url.scheme in ("http", "https") and url.netloc == host != ""
        return own and (bool(self.keys) or _private(url.hostname or ""))


def _private(name: str) -> bool:
    """Whether a host's name can be no stranger's: an address, a name without a dot, or one that no public DNS has."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name or name.endswith(_PRIVATE)
    return True


def _network(scope: Scope) -> str:
    """The address of the other end; of IPv6 its first 64 bits, since whoever has one such address has all of them."""
    host = str((scope.get("client") or ("unknown",))[0])
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    mapped = address.ipv4_mapped
    return str(mapped) if mapped else str(ipaddress.IPv6Network((int(address), 64), strict=False))
