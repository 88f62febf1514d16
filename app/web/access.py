"""Authentication by API key, and the check of browsers' origins. Pure ASGI, in front of routing.

Every path needs a key unless its dialect lists it as open: a route that is added later needs one, and so does a path
without a route.
"""

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import OriginNotAllowed, ServiceError, Unauthorized
from app.web.api_keys import ApiKeys, sent_key
from app.web.error_responses import ErrorResponses
from app.web.request_state import request_state

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_POLICY_VIOLATION = 1008
_PRIVATE = (".localhost", ".local", ".internal", ".home.arpa", ".test")
"""RFC 6761, 6762 and 8375, and what ICANN has set aside."""


class AccessControl:
    """Refuses requests without an API key, if there are keys, and those of web pages of other origins.

    Routes find the client as `RequestState.caller`: its key, else its address.

    Args:
        app: the next ASGI app.
        keys: if there are none, every request passes.
        origins: further origins that may send requests, as browsers write them; the service's own always may.
        errors: answers the requests that are refused.
        open_paths: can be read without a key.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: ApiKeys,
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
        if changes and not self._origin_allowed(headers.get("origin"), headers.get("host", "")):
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

    def _origin_allowed(self, origin: str | None, host: str) -> bool:
        """Whether a web page of an origin may send requests. Only browsers send an origin.

        The service's own origin is the address in the browser. A foreign page can give this address a public name of
        its own (DNS rebinding), so that its origin seems to be the service's: without keys, public names are refused.
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
    """Whether a host is an address, a name without a dot, or a name that public DNS does not have."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name or name.endswith(_PRIVATE)
    return True


def _network(scope: Scope) -> str:
    """The client's address; of IPv6 the first 64 bits, since a client commonly has all addresses of such a network."""
    host = str((scope.get("client") or ("unknown",))[0])
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    mapped = address.ipv4_mapped
    return str(mapped) if mapped else str(ipaddress.IPv6Network((int(address), 64), strict=False))
