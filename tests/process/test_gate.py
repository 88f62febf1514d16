"""Who may come in: keys and origins, at a real server."""

import asyncio
import base64
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.cli.serve import warn_if_open
from app.client import Img2Img, Img2ImgError
from app.errors import Misconfigured
from app.main import create_app
from app.routes import DIALECTS
from app.settings import Settings
from app.web.api_keys import ApiKeys
from app.web.dialects import Dialects
from tests.support.fakes import FAKE
from tests.support.http import eventually, free_port, post, problem, sample
from tests.support.processes import children
from tests.support.servers import StartServer

OPEN_PATHS = Dialects(DIALECTS, Settings()).open_paths

KEYS = "first-key,second-key"


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def paths_of(routes: Iterable[Any]) -> Iterator[str]:
    """Of all routes, those of included routers too."""
    for route in routes:
        if inner := getattr(route, "original_router", None):
            yield from paths_of(inner.routes)
        else:
            yield route.path


def test_every_route_but_health_needs_a_key() -> None:
    app = create_app(Settings(devices="cpu", api_keys=KEYS), FAKE)

    @app.get("/added/later")
    async def later() -> str:
        return "open"

    known = set(paths_of(app.routes))
    paths = known | {"/nowhere", "/health/", "//health"}
    assert len(known) > 8
    transport = httpx2.ASGITransport(app=app)

    async def statuses() -> dict[tuple[str, str], int]:
        found = {}
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            # Only what is closed: what is open needs a service that has started.
            for path in paths - OPEN_PATHS:
                for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"):
                    found[method, path] = (await client.request(method, path)).status_code
        return found

    assert {key: status for key, status in asyncio.run(statuses()).items() if status != 401} == {}
    assert known >= OPEN_PATHS


def test_any_key_in_any_header_is_accepted(start_server: StartServer, png: bytes) -> None:
    with start_server(api_keys=KEYS) as url:
        for path in OPEN_PATHS:
            assert httpx2.get(url + path).status_code == 200
        ways = [
            {"Authorization": "Bearer first-key"},
            {"Authorization": "bearer second-key"},
            {"X-API-Key": "second-key"},
            basic("any-user", "first-key"),
        ]
        for headers in ways:
            assert httpx2.get(f"{url}/metrics", headers=headers).status_code == 200
        refused = [
            {},
            {"Authorization": "Bearer third-key"},
            {"Authorization": "Bearer first-key,second-key"},
            {"Authorization": "first-key"},
            {"Authorization": "Basic first-key"},
            {"X-API-Key": "first-ke"},
            basic("first-key", "x"),
        ]
        for wrong in refused:
            response = httpx2.get(f"{url}/metrics", headers=wrong)
            assert "X-API-Key" in problem(response, 401, "unauthorized")
            assert "bearer" in response.headers["www-authenticate"].lower()
        assert post(url, png).status_code == 401
        with Img2Img(url, api_key="second-key") as client:
            assert client.edit(png, "dog wizard").data
        with Img2Img(url) as client, pytest.raises(Img2ImgError, match=r"An API key is needed.*IMG2IMG_API_KEY"):
            client.edit(png, "dog wizard")


def test_client_takes_its_key_from_the_environment(
    start_server: StartServer, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMG2IMG_API_KEY", "first-key")
    with start_server(api_keys=KEYS) as url, Img2Img(url) as client:
        assert client.edit(png, "dog wizard").data
    with pytest.raises(ValueError, match="API key"):
        Img2Img(api_key="two words")


def test_key_file_is_read_again_when_it_changes(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.watched_files._RECHECK_SECONDS", 0.05)
    file = tmp_path / "keys"
    file.write_text("# of this month\nold-key\n\n")

    def accepts(key: str) -> bool:
        return httpx2.get(f"{url}/metrics", headers={"X-API-Key": key}).status_code == 200

    with start_server(api_keys="fixed-key", api_keys_file=file) as url:
        assert accepts("old-key")
        assert accepts("fixed-key")
        assert not accepts("# of this month")
        (tmp_path / "next").write_text("old-key\nnew-key\n")
        (tmp_path / "next").rename(file)
        eventually(lambda: accepts("new-key"))
        assert accepts("old-key")
        file.write_text("new-key\n")
        eventually(lambda: not accepts("old-key"))
        # A mistake locks out no client.
        file.write_text("\n")
        time.sleep(0.1)
        assert accepts("new-key")
        file.unlink()
        time.sleep(0.1)
        assert accepts("new-key")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "cannot be read"), ("\n# nothing\n", "holds no key"), ("two words\n", "no space"), ("schlüssel", "ASCII")],
)
def test_unusable_key_file_ends_the_program(content: str | None, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    with pytest.raises(Misconfigured, match=reason):
        ApiKeys(Settings(api_keys_file=file))
    done = subprocess.run(
        [sys.executable, "-m", "app", "serve", "--port", "0", "--device", "cpu"],
        env={**os.environ, "IMG2IMG_API_KEYS_FILE": str(file)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("img2img: IMG2IMG_API_KEYS_FILE: ")
    assert len(done.stderr.splitlines()) == 1


def test_keys_do_not_show_in_settings_logs_or_processes(png: bytes) -> None:
    secret = "unmistakable-secret"
    assert secret not in repr(Settings(api_keys=secret))
    with pytest.raises(Misconfigured) as error:
        ApiKeys(Settings(api_keys=f"{secret} spaced"))
    assert secret not in str(error.value)
    code = f"""
import sys
from app.cli.serve import serve
from app.settings import Settings
sys.exit(serve(Settings(devices="cpu", port=int(sys.argv[1]), log_level="debug"), "{FAKE}"))
"""
    port = free_port()
    environment = {**os.environ, "IMG2IMG_API_KEYS": secret}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(port)], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            with Img2Img(url, api_key=secret) as client:
                client.wait_until_ready(30)
                client.edit(png, "dog wizard")
            httpx2.get(f"{url}/metrics", headers={"X-API-Key": f"{secret}-wrong"})
            seen = [Path(f"/proc/{pid}/environ").read_bytes() for pid in children(process.pid)]
        finally:
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=30)
    assert "401" in log
    assert len(seen) > 1
    assert not any(secret.encode() in environment for environment in seen)
    assert secret not in log


class TestOrigins:
    def test_page_of_another_origin_is_refused(self, start_server: StartServer, png: bytes) -> None:
        def ask(origin: str) -> httpx2.Response:
            return httpx2.post(
                f"{url}/img2img", files={"image": png}, data={"prompt": "dog"}, headers={"Origin": origin}
            )

        with start_server(cors_origins="https://friend.org") as url:
            for origin in ("https://elsewhere.org", "null", "http://127.0.0.1", f"{url}.evil.org", "http://[::1"):
                problem(ask(origin), 403, "origin_not_allowed")
            assert ask(url).status_code == 200
            assert ask("https://friend.org").status_code == 200
            assert sample(url, 'img2img_rejected_total{reason="origin_not_allowed"}') == 5
            # Reads are answered for any page; its browser decides whether the page may see the answer.
            assert httpx2.get(f"{url}/metrics", headers={"Origin": "https://elsewhere.org"}).status_code == 200

    def test_listed_origin_gets_cors_headers(self, start_server: StartServer, png: bytes) -> None:
        question = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
        with start_server(cors_origins="https://friend.org", api_keys=KEYS) as url:
            friend, stranger = {"Origin": "https://friend.org"}, {"Origin": "https://elsewhere.org"}
            preflight = httpx2.options(f"{url}/img2img", headers={**question, **friend})
            assert preflight.status_code == 200
            assert preflight.headers["access-control-allow-origin"] == "https://friend.org"
            assert (
                "access-control-allow-origin"
                not in httpx2.options(f"{url}/img2img", headers={**question, **stranger}).headers
            )
            # A page has to see why it was refused.
            refused = httpx2.post(f"{url}/img2img", headers=friend)
            assert refused.status_code == 401
            assert refused.headers["access-control-allow-origin"] == "https://friend.org"
            answer = httpx2.post(
                f"{url}/img2img",
                files={"image": png},
                data={"prompt": "dog"},
                headers={**friend, "X-API-Key": "first-key"},
            )
            assert answer.status_code == 200
            exposed = set(answer.headers["access-control-expose-headers"].split(", "))
            assert {"X-Seed", "X-Request-Id", "Retry-After", "X-Error-Message", "X-Should-Retry"} < exposed
            assert {"X-Clamped", "Seed", "Finish-Reason", "Content-Disposition", "Server-Timing"} < exposed

    def test_listed_origin_may_use_each_method(self, start_server: StartServer) -> None:
        with start_server(cors_origins="https://friend.org") as url:
            for method in ("GET", "POST", "PUT"):
                question = {"Access-Control-Request-Method": method, "Origin": "https://friend.org"}
                assert httpx2.options(f"{url}/predictions/mine", headers=question).status_code == 200

    def test_no_cors_headers_without_a_listed_origin(self, server: str) -> None:
        headers = httpx2.get(f"{server}/health", headers={"Origin": "https://elsewhere.org"}).headers
        assert not [name for name in headers if name.startswith("access-control")]


def test_every_answer_has_security_headers(server: str, png: bytes) -> None:
    picture, refused = post(server, png), post(server, b"no picture")
    answers = [picture, refused, httpx2.get(f"{server}/nowhere"), httpx2.get(f"{server}/docs")]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert "sandbox" in picture.headers["content-security-policy"]
    assert picture.headers["cache-control"] == "no-store"


def test_public_address_without_keys_is_warned_about(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warnings(**knobs: Any) -> list[str]:
        caplog.clear()
        warn_if_open(Settings(**knobs))
        return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    for host in ("0.0.0.0", "::", "", "192.0.2.1"):
        assert "WITHOUT AUTHENTICATION" in warnings(host=host)[0]
        assert warnings(host=host, api_keys="key") == []
        assert warnings(host=host, api_keys_file=tmp_path) == []
    assert warnings(host="127.0.0.1") == []
    monkeypatch.setenv("IMG2IMG_API_KEY", "of-the-client")
    assert "the service's keys are IMG2IMG_API_KEYS" in warnings(host="127.0.0.1")[0]
    assert warnings(host="127.0.0.1", api_keys="key") == []
