"""The metrics, from the registry, and the alerts, from the rules of Prometheus."""

import re
from pathlib import Path

import yaml

from app.observability.metrics import Metrics
from scripts.docs_pages.tables import required, table

RULES = Path(__file__).parents[2] / "deploy/observability/alerts.yml"
SUFFIXES = {"counter": "_total", "info": "_info"}


def metrics() -> str:
    """A row for each metric."""
    rows = []
    # The registry has no public way to the names of labels.
    for collector in Metrics().registry._collector_to_names:
        labels = ", ".join(f"`{label}`" for label in getattr(collector, "_labelnames", ()))
        for metric in collector.collect():
            where = f"The metric '{metric.name}' in app/observability/metrics.py"
            name = metric.name + SUFFIXES.get(metric.type, "")
            rows.append((f"`{name}`", metric.type, labels, required(metric.documentation, where)))
    return table(("name", "type", "labels", "meaning"), rows)


def alerts() -> str:
    """A section for each alert. Not a table: conditions hold bars, which Markdown's dialects escape differently."""
    sections = []
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            where = f"The alert '{rule['alert']}' in deploy/observability/alerts.yml"
            summary = required(rule.get("annotations", {}).get("summary"), where)
            # A label of the alert, as Prometheus' templates write it.
            summary = re.sub(r"\{\{ \$labels\.(\w+) \}\}", r"`\1`", summary)
            lasting = f"It fires after {rule['for']}." if "for" in rule else "It fires at once."
            condition = "\n".join(line.strip() for line in str(rule["expr"]).splitlines())
            sections.append(f"## {rule['alert']}\n\n{summary} {lasting}\n\n```promql\n{condition}\n```")
    return "\n\n".join(sections)
