"""The configuration of the compose profile observability in a real Prometheus."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.support.dashboard import ALERTS, EXPRESSIONS, FOLDER, PANELS
from tests.support.http import eventually, free_port, post
from tests.support.images import noise, saved
from tests.support.servers import StartServer

PNG = saved(noise((24, 24)), "PNG")


needs_prometheus = pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not installed")


@contextmanager
def prometheus(folder: Path, service: str, key: str) -> Iterator[str]:
    """A real one with the profile's configuration, but for the addresses."""
    (folder / "key").write_text(f"{key}\n")
    config = (FOLDER / "prometheus.yml").read_text()
    config = config.replace("img2img-service:8000", urlsplit(service).netloc).replace(
        "/run/img2img-key", str(folder / "key")
    )
    config = config.replace("/etc/prometheus/alerts.yml", str(FOLDER / "alerts.yml"))
    (folder / "prometheus.yml").write_text(config.replace("scrape_interval: 5s", "scrape_interval: 1s"))
    port = free_port()
    command = [
        *("prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"),
        *(f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"),
    ]
    with subprocess.Popen(command) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def query(url: str, expression: str) -> list[Any]:
    try:
        answer = httpx2.get(f"{url}/api/v1/query", params={"query": expression})
    except httpx2.TransportError:
        return []
    assert answer.status_code != 400, answer.text
    found: list[Any] = answer.json()["data"]["result"] if answer.is_success else []
    return found


@needs_prometheus
def test_prometheus_finds_every_series_of_the_dashboard(start_server: StartServer, tmp_path: Path) -> None:
    with start_server(api_keys="right") as service, prometheus(tmp_path, service, "right") as url:
        eventually(lambda: [one["value"][1] for one in query(url, "up")] == ["1"])
        headers = {"X-API-Key": "right"}
        for _ in range(4):
            form: dict[str, Any] = {"data": {"prompt": "x"}, "files": {"image": PNG}}
            assert httpx2.post(f"{service}/img2img", headers=headers, **form).is_success
            post(service, PNG)
            time.sleep(0.6)
        for expression in EXPRESSIONS:
            asked = expression.replace("[$__rate_interval]", "[1m]")
            eventually(lambda: bool(query(url, asked)))  # noqa: B023
        (pictures,) = query(url, "img2img_images_total")
        assert pictures["value"][1] == "4"


@needs_prometheus
def test_first_refusal_and_first_worker_death_are_drawn(start_server: StartServer, tmp_path: Path) -> None:
    with start_server() as service, prometheus(tmp_path, service, "none") as url:
        eventually(lambda: bool(query(url, "count_over_time(img2img_worker_deaths_total[1m]) > 1")))
        words = f"exit_at=0 once={tmp_path / 'once'}"
        assert httpx2.post(f"{service}/img2img", data={"prompt": words}, files={"image": PNG}).is_success
        assert httpx2.post(f"{service}/img2img", data={"prompt": "x"}, files={"image": b"GIF89a"}).status_code == 415
        for panel, series in (("Restarts", "exit"), ("Refusals", "unsupported_image_format")):
            (expression, *_) = [
                target["expr"].replace("[$__rate_interval]", "[1m]")
                for one in PANELS
                if one["title"].startswith(panel)
                for target in one["targets"]
            ]
            eventually(lambda: drawn(url, expression).get(series, 0) > 0)  # noqa: B023


def drawn(url: str, expression: str) -> dict[str, float]:
    """The value of each line of a panel, by its label."""
    return {next(iter(one["metric"].values())): float(one["value"][1]) for one in query(url, expression)}


@needs_prometheus
def test_prometheus_without_a_key_sees_nothing(start_server: StartServer, tmp_path: Path) -> None:
    with start_server(api_keys="right") as service, prometheus(tmp_path, service, "none") as url:
        eventually(lambda: [one["value"][1] for one in query(url, "up")] == ["0"])


@needs_prometheus
def test_prometheus_reads_the_alerts(start_server: StartServer, tmp_path: Path) -> None:
    with start_server() as service, prometheus(tmp_path, service, "none") as url:
        eventually(lambda: bool(query(url, "up")))
        groups = httpx2.get(f"{url}/api/v1/rules").json()["data"]["groups"]
        assert [rule["name"] for group in groups for rule in group["rules"]] == [rule["alert"] for rule in ALERTS]
