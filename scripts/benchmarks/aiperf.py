"""Third-party load test: NVIDIA AIPerf against `/v1/images/edits`."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console

from scripts.benchmarks import report
from scripts.benchmarks.report import ROOT, Goal, Outcome
from scripts.benchmarks.servers import OURS, running

VERSION = "0.13.0"
OUTPUT = ROOT / "out" / "aiperf"
WARMUP = 8
"""Warm-up requests, which are not in the report."""

LOAD = {
    "--image-width-mean": "512",
    "--image-height-mean": "512",
    # The length of usual prompts. The default is 550 tokens, of which CLIP reads 77.
    "--prompt-input-tokens-mean": "20",
    # CLIP's tokenizer from a folder. Otherwise AIPerf looks for one on the model hub, by the model's name.
    "--tokenizer": str(ROOT / "app" / "model" / "embedded" / "tokenizer"),
    # A rate at which AIPerf checks whether to send. Without one it polls and takes a core from the service.
    "--request-rate": "100",
    "--arrival-pattern": "constant",
    "--ui": "none",
    "--log-level": "error",
}
"""AIPerf's default options; the caller's options override them."""


def main() -> int:
    """Run AIPerf; returns 1 if a request failed, else AIPerf's exit code, which is 1 if no image was returned."""
    parser = argparse.ArgumentParser(
        prog="scripts/aiperf",
        description=__doc__,
        epilog="Other options go to `aiperf profile`. Its files are in out/aiperf afterwards. For a service with keys, "
        "set IMG2IMG_API_KEY.",
        allow_abbrev=False,
    )
    parser.add_argument("--url", help="URL of a running service (default: start one with the embedded model)")
    parser.add_argument("--requests", type=int, default=200, help="default: 200")
    parser.add_argument("--concurrency", type=int, default=4, help="requests at a time (default: 4)")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of prompts and images (default: 0); use a new one for each run, or the service has them cached",
    )
    options, others = parser.parse_known_args()
    if options.url:
        return measure(options.url.rstrip("/"), options, others)
    with running(replace(OURS, environment={"IMG2IMG_DEVICES": "cpu"}), Path("embedded")) as url:
        return measure(url, options, others)


def measure(url: str, options: argparse.Namespace, others: Sequence[str]) -> int:
    """Run AIPerf, which prints a report, and show the figures of its result file."""
    key = os.environ.get("IMG2IMG_API_KEY")
    headers = {"X-API-Key": key} if key else {}
    try:
        models = httpx2.get(f"{url}/v1/models", headers=headers, trust_env=False).raise_for_status().json()
    except httpx2.HTTPError as error:
        sys.exit(f"{url}/v1/models does not name the served model: {error}")
    model = models["data"][0]["id"]
    tool = [str(ROOT / "scripts" / "resilience" / "tool"), "aiperf", VERSION]
    folder = subprocess.run(tool, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    load = {
        **LOAD,
        "--request-count": str(options.requests),
        "--concurrency": str(options.concurrency),
        "--warmup-request-count": str(WARMUP),
        # As many prompts and images as requests: repeated ones would be in the service's cache.
        "--num-dataset-entries": str(options.requests + WARMUP),
        "--random-seed": str(options.seed),
    }
    command = [str(ROOT / folder / "aiperf"), "profile", "--endpoint-type", "image_edit", "--url", url]
    command += ["--model", model, "--artifact-dir", str(OUTPUT), *(["--api-key", key] if key else [])]
    command += [word for name, value in load.items() if name not in others for word in (name, value)]
    command += others
    # In offline mode AIPerf takes the tokenizer's folder for a repository name.
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    written = OUTPUT / "profile_export_aiperf.json"
    written.unlink(missing_ok=True)
    if code := subprocess.run(command, env=environment, check=False).returncode:
        return code
    found = outcome(json.loads(written.read_text()), f"{options.concurrency} at a time, to {model}")
    report.show(found, Console())
    print(report.line([found]))
    return 0 if all(goal.met for goal in found.goals) else 1


def outcome(found: dict[str, Any], title: str) -> Outcome:
    """AIPerf's figures, with milliseconds converted to seconds."""
    requests, good = (round(found[what]["avg"]) for what in ("completed_request_count", "request_count"))
    latencies = (found["request_latency"][what] / 1000 for what in ("avg", "p50", "p90", "p99"))
    return Outcome(
        "aiperf",
        f"AIPerf {found['aiperf_version']}: {requests} requests, {title}",
        ("images/s", "latency s, avg", "p50", "p90", "p99", "failed"),
        [(found["request_throughput"]["avg"], *latencies, requests - good)],
        [Goal("count", "requests that failed", requests - good, at_most=0)],
    )


if __name__ == "__main__":
    sys.exit(main())
