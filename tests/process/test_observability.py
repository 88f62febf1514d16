"""The compose profile `observability`: what its dashboard asks for is there, as a real Prometheus finds it."""

import json
import re
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
import yaml

from app.observability.metrics import Metrics
from tests.support.http import eventually, free_port, post
from tests.support.images import noise, saved
from tests.support.paths import ROOT
from tests.support.servers import StartServer

FOLDER = ROOT / "deploy/observability"
PANELS = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
ALERTS = [rule for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
PNG = saved(noise((24, 24)), "PNG")

CASES = """
rule_files: [ALERTS]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'up{job="img2img"}', values: '1x20'}
      - {series: 'img2img_ready', values: '1x20'}
      - {series: 'img2img_worker_ready{device="cuda:0"}', values: '1x20'}
      - {series: 'img2img_worker_ready{device="cuda:1"}', values: '1x4 0x16'}
      - {series: 'img2img_worker_deaths_total{cause="hang"}', values: '0x4 1 2 3 3x13'}
      - {series: 'img2img_worker_deaths_total{cause="exit"}', values: '0x10 1x10'}
      - {series: 'img2img_requests_total{route="/img2img",code="200"}', values: '0+60x20'}
      - {series: 'img2img_requests_total{route="/img2img",code="503"}', values: '0+3x20'}
      - {series: 'img2img_rejected_total{reason="queue_full"}', values: '0+3x20'}
      - {series: 'img2img_certificate_expiry_timestamp_seconds', values: '0x20'}
    alert_rule_test:
      - {eval_time: 3m, alertname: WorkerGone}
      - eval_time: 10m
        alertname: WorkerGone
        exp_alerts:
          - exp_labels: {device: 'cuda:1'}
            exp_annotations:
              summary: The worker on cuda:1 makes no images. Others may. See the log for its cause of death.
      - eval_time: 8m
        alertname: WorkersDie
        exp_alerts:
          - exp_labels: {cause: hang}
            exp_annotations:
              summary: Workers die again and again (hang). Their requests run again, but take longer.
      - {eval_time: 15m, alertname: ServiceGone}
      - {eval_time: 15m, alertname: ServiceNotReady}
      - {eval_time: 15m, alertname: TooBusy}
      - {eval_time: 15m, alertname: RequestsFail}
      - {eval_time: 15m, alertname: CertificateExpires}
  - interval: 1m
    input_series:
      - {series: 'up{job="img2img"}', values: '0x20'}
      - {series: 'img2img_ready', values: '0x20'}
      - {series: 'img2img_requests_total{route="/img2img",code="200"}', values: '0+60x20'}
      - {series: 'img2img_requests_total{route="/img2img",code="500"}', values: '0x10 1x10'}
      - {series: 'img2img_requests_total{route="/health/ready",code="200"}', values: '0+600x20'}
      - {series: 'img2img_rejected_total{reason="deadline_exceeded"}', values: '0+9x20'}
      - {series: 'img2img_certificate_expiry_timestamp_seconds', values: '1000000x20'}
    alert_rule_test:
      - eval_time: 15m
        alertname: ServiceGone
        exp_alerts:
          - exp_labels: {job: img2img}
            exp_annotations: {summary: 'Nothing answers `/metrics`, or not with this key.'}
      - eval_time: 15m
        alertname: ServiceNotReady
        exp_alerts:
          - exp_annotations:
              summary: No image can be made. The first start downloads the model, which takes minutes. See the log.
      - eval_time: 15m
        alertname: TooBusy
        exp_alerts:
          - exp_annotations:
              summary: More than a tenth of the requests is refused, because there is too much work.
      - eval_time: 12m
        alertname: RequestsFail
        exp_alerts:
          - exp_labels: {route: /img2img}
            exp_annotations:
              summary: Requests to /img2img fail because of a fault of the service or its model. See the log.
      - eval_time: 15m
        alertname: CertificateExpires
        exp_alerts:
          - exp_annotations:
              summary: The certificate that signs images expires within two weeks. No image is made after that.
"""
"""For promtool: what Prometheus sees, and which alerts come of it."""

needs_prometheus = pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not installed")


def series() -> set[str]:
    """Every name that a sample can have."""
    names: set[str] = set()
    for metric in Metrics().registry.collect():
        suffixes = {
            "counter": ["_total"],
            "histogram": ["_bucket", "_count", "_sum"],
            "info": ["_info"],
        }.get(metric.type, [""])
        names |= {metric.name + suffix for suffix in suffixes}
    return names


def test_every_series_of_the_dashboard_and_the_alerts_is_one_of_the_service_s() -> None:
    expressions = [*EXPRESSIONS, *(rule["expr"] for rule in ALERTS)]
    named = {name for expression in expressions for name in re.findall(r"img2img_\w+", expression)}
    assert named <= series()
    assert len(named) > 12


def test_every_label_of_the_dashboard_is_one_of_its_series() -> None:
    labels = {label for metric in vars(Metrics()).values() for label in getattr(metric, "_labelnames", ())}
    labels |= {"le", "model", "device"}
    targets = [target for panel in PANELS for target in panel["targets"]]
    legends = {label for target in targets for label in re.findall(r"{{(\w+)}}", target["legendFormat"])}
    groups = [by for expression in EXPRESSIONS for by in re.findall(r"by \(([^)]*)\)", expression)]
    grouped = {label.strip() for by in groups for label in by.split(",")}
    assert legends | grouped <= labels


def test_panels_do_not_lie_on_each_other_and_each_has_a_title() -> None:
    places: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & places
        assert all(0 <= x < 24 for x, _ in cells)
        assert panel["title"]
        places |= cells


def test_the_compose_file_mounts_what_is_here_and_publishes_to_this_host_only() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for name in ("prometheus", "grafana"):
        assert services[name]["profiles"] == ["observability"]
        assert (services[name]["read_only"], services[name]["cap_drop"]) == (True, ["ALL"])
        own = [volume.partition(":")[0] for volume in services[name]["volumes"] if volume.startswith("./")]
        assert own
        assert all((ROOT / path).is_file() for path in own)
    assert "ports" not in services["prometheus"]
    assert services["grafana"]["ports"] == ["${GRAFANA_ADDRESS:-127.0.0.1}:${GRAFANA_PORT:-3000}:3000"]
    assert (FOLDER / "no-key.txt").is_file()
    for file in ("grafana.yml", "dashboards.yml"):
        assert yaml.safe_load((FOLDER / file).read_text())["apiVersion"] == 1


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
def test_a_real_prometheus_finds_what_the_dashboard_asks_for(start_server: StartServer, tmp_path: Path) -> None:
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
def test_the_first_refusal_and_the_first_death_of_a_worker_are_drawn(start_server: StartServer, tmp_path: Path) -> None:
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
def test_without_a_key_it_sees_nothing(start_server: StartServer, tmp_path: Path) -> None:
    with start_server(api_keys="right") as service, prometheus(tmp_path, service, "none") as url:
        eventually(lambda: [one["value"][1] for one in query(url, "up")] == ["0"])


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_the_alerts_are_such_as_prometheus_takes_and_come_when_they_should(tmp_path: Path) -> None:
    (tmp_path / "test.yml").write_text(CASES.replace("ALERTS", str(FOLDER / "alerts.yml")))
    done = subprocess.run(["promtool", "test", "rules", tmp_path / "test.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_prometheus
def test_a_real_prometheus_reads_the_alerts(start_server: StartServer, tmp_path: Path) -> None:
    with start_server() as service, prometheus(tmp_path, service, "none") as url:
        eventually(lambda: bool(query(url, "up")))
        groups = httpx2.get(f"{url}/api/v1/rules").json()["data"]["groups"]
        assert [rule["name"] for group in groups for rule in group["rules"]] == [rule["alert"] for rule in ALERTS]
