"""ApiKeys, origins and callers, without a server."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app.errors import Misconfigured
from app.observability.metrics import Metrics
from app.routes import DIALECTS
from app.settings import Settings
from app.web.access import AccessControl
from app.web.api_keys import ApiKeys
from app.web.dialects import Dialects
from app.web.error_responses import ErrorResponses
from app.web.request_state import request_state

OPEN_PATHS = Dialects(DIALECTS, Settings()).open_paths


ERRORS = ErrorResponses(Dialects(DIALECTS, Settings()), Metrics())


KEYS = "first-key,second-key"


def test_key_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Misconfigured, match=r"IMG2IMG_API_KEYS_FILE: .* cannot be read"):
        ApiKeys(Settings(api_keys_file=tmp_path / "keys"))


def test_pipe_as_key_file_is_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("old-key\n")
    keys = ApiKeys(Settings(api_keys_file=file))
    file.unlink()
    os.mkfifo(file)
    time.sleep(1.1)
    assert keys.find(b"old-key")
    with pytest.raises(Misconfigured, match="not a regular file"):
        ApiKeys(Settings(api_keys_file=file))


def test_empty_variable_counts_as_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEYS_FILE", "API_KEYS", "PORT"):
        monkeypatch.setenv(f"IMG2IMG_{name}", "")
    assert not ApiKeys(Settings())
    assert Settings().port == 8000


@pytest.mark.parametrize(
    "listed", ["*", "null", "example.org", "https://Example.org", "https://example.org/", "ftp://x", "https://*.org"]
)
def test_listed_origin_that_no_browser_sends_is_refused(listed: str) -> None:
    with pytest.raises(ValidationError, match="as browsers write it"):
        Settings(cors_origins=listed)


@pytest.mark.parametrize("content", ["\ufeffthe-key\n", "  the-key  \n", "  # a-comment\n\t#another\nthe-key"])
def test_key_file_comments_and_blanks_are_skipped(content: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(content)
    keys = ApiKeys(Settings(api_keys_file=tmp_path / "keys"))
    assert keys.find(b"the-key")
    assert not keys.find(b"#another")
    assert not keys.find(b"a-comment")


@pytest.mark.parametrize("listed", [" ", ",", " , "])
def test_key_list_without_a_key_is_refused(listed: str) -> None:
    with pytest.raises(Misconfigured, match="holds no key"):
        ApiKeys(Settings(api_keys=listed))


def test_websocket_without_a_key_is_closed() -> None:
    sent: list[Any] = []

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})

    async def send(message: Any) -> None:
        sent.append(message["type"])

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    def knock(**headers: str) -> list[str]:
        sent.clear()
        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        gate = AccessControl(
            behind, ApiKeys(Settings(api_keys=KEYS)), frozenset({"https://friend.org"}), ERRORS, OPEN_PATHS
        )
        scope = {"type": "websocket", "path": "/health", "headers": raw, "client": ("::1", 1)}
        asyncio.run(gate(scope, receive, send))
        return list(sent)

    assert knock() == ["websocket.close"]
    assert knock(x_api_key="wrong") == ["websocket.close"]
    assert knock(x_api_key="first-key") == ["websocket.accept"]
    assert knock(x_api_key="first-key", host="here", origin="https://elsewhere.org") == ["websocket.close"]
    assert knock(x_api_key="first-key", host="here", origin="https://friend.org") == ["websocket.accept"]


def test_client_is_its_key_or_address_or_ipv6_network() -> None:
    seen: list[str] = []

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        seen.append(request_state(scope).caller)

    def caller(address: str, keys: str = "", **headers: str) -> str:
        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": "GET", "path": "/x", "headers": raw, "client": (address, 1)}
        gate = AccessControl(behind, ApiKeys(Settings(api_keys=keys)), frozenset(), ERRORS, OPEN_PATHS)
        asyncio.run(gate(scope, None, None))  # type: ignore[arg-type]
        return seen[-1]

    assert caller("192.0.2.1") != caller("192.0.2.2")
    assert caller("::ffff:192.0.2.1") == caller("192.0.2.1")
    assert caller("2001:db8::1") == caller("2001:db8::ffff:0:0:1")
    assert caller("2001:db8::1") != caller("2001:db8:0:1::1")
    assert caller("fe80::1%eth0") == caller("fe80::2%eth0")
    assert caller("unix") == "address unix"
    first, second = (caller("192.0.2.1", KEYS, x_api_key=key) for key in KEYS.split(","))
    assert first != second
    assert first == caller("192.0.2.9", KEYS, authorization="Bearer first-key")
    assert "first" not in first
