"""The compose profile `observability`: what its dashboard asks for is there, as a real Prometheus finds it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from app.observability.metrics import Metrics
from tests.support.dashboard import ALERTS, EXPRESSIONS, FOLDER, PANELS
from tests.support.paths import ROOT

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


def test_dashboard_and_alerts_use_known_series() -> None:
    expressions = [*EXPRESSIONS, *(rule["expr"] for rule in ALERTS)]
    named = {name for expression in expressions for name in re.findall(r"img2img_\w+", expression)}
    assert named <= series()
    assert len(named) > 12


def test_dashboard_uses_known_labels() -> None:
    labels = {label for metric in vars(Metrics()).values() for label in getattr(metric, "_labelnames", ())}
    labels |= {"le", "model", "device"}
    targets = [target for panel in PANELS for target in panel["targets"]]
    legends = {label for target in targets for label in re.findall(r"{{(\w+)}}", target["legendFormat"])}
    groups = [by for expression in EXPRESSIONS for by in re.findall(r"by \(([^)]*)\)", expression)]
    grouped = {label.strip() for by in groups for label in by.split(",")}
    assert legends | grouped <= labels


def test_panels_have_titles_and_do_not_overlap() -> None:
    places: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & places
        assert all(0 <= x < 24 for x, _ in cells)
        assert panel["title"]
        places |= cells


def test_compose_file_mounts_existing_files_on_this_host_only() -> None:
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


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_alerts_are_valid_and_fire(tmp_path: Path) -> None:
    (tmp_path / "test.yml").write_text(CASES.replace("ALERTS", str(FOLDER / "alerts.yml")))
    done = subprocess.run(["promtool", "test", "rules", tmp_path / "test.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
