"""The dashboard and the alerts of the compose profile `observability`."""

import json

import yaml

from tests.support.paths import ROOT

FOLDER = ROOT / "deploy/observability"
PANELS = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
ALERTS = [rule for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
