"""NVIDIA's AIPerf against `/v1/images/edits`: a load, and a report on it, that nobody here wrote."""

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
"""Requests that come before, and are not in the report."""

LOAD = {
    "--image-width-mean": "512",
    "--image-height-mean": "512",
    # As long as people's are; by default they have 550 tokens, of which CLIP reads 77.
    "--prompt-input-tokens-mean": "20",
    # CLIP's own, from a folder, or AIPerf would ask the model hub for one by the name of the model.
    "--tokenizer": str(ROOT / "app" / "model" / "embedded" / "tokenizer"),
    # How often it looks whether one more may go out. Without a rate it looks all the time, and takes a whole core from
    # the service.
    "--request-rate": "100",
    "--arrival-pattern": "constant",
    "--ui": "none",
    "--log-level": "error",
}
"""Those that the caller gives as well are the caller's."""


def main() -> int:
    """Returns 1 if a request failed, or what AIPerf returns: that is 1 if none was answered with a picture."""
    parser = argparse.ArgumentParser(
        prog="scripts/aiperf",
        description=__doc__,
        epilog="Any other option goes to `aiperf profile`. What it writes lies in out/aiperf afterwards. For a service "
        "that asks for a key, IMG2IMG_API_KEY has it.",
        allow_abbrev=False,
    )
    parser.add_argument("--url", help="of a service that runs; by default one is started, with the embedded model")
    parser.add_argument("--requests", type=int, default=200, help="by default 200")
    parser.add_argument("--concurrency", type=int, default=4, help="how many at a time; by default 4")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of prompts and pictures, by default 0; a service that has seen them needs another one, or it knows them",
    )
    options, others = parser.parse_known_args()
    if options.url:
        return measure(options.url.rstrip("/"), options, others)
    with running(replace(OURS, environment={"IMG2IMG_DEVICES": "cpu"}), Path("embedded")) as url:
        return measure(url, options, others)


def measure(url: str, options: argparse.Namespace, others: Sequence[str]) -> int:
    """Run AIPerf, which prints its report, and show what stands in the file that it leaves."""
    key = os.environ.get("IMG2IMG_API_KEY")
    headers = {"X-API-Key": key} if key else {}
    try:
        models = httpx2.get(f"{url}/v1/models", headers=headers, trust_env=False).raise_for_status().json()
    except httpx2.HTTPError as error:
        sys.exit(f"{url}/v1/models does not say which model it serves: {error}")
    model = models["data"][0]["id"]
    tool = [str(ROOT / "scripts" / "resilience" / "tool"), "aiperf", VERSION]
    folder = subprocess.run(tool, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    load = {
        **LOAD,
        "--request-count": str(options.requests),
        "--concurrency": str(options.concurrency),
        "--warmup-request-count": str(WARMUP),
        # As many prompts and pictures as requests: of a hundred, the second hundred would be known.
        "--num-dataset-entries": str(options.requests + WARMUP),
        "--random-seed": str(options.seed),
    }
    command = [str(ROOT / folder / "aiperf"), "profile", "--endpoint-type", "image_edit", "--url", url]
    command += ["--model", model, "--artifact-dir", str(OUTPUT), *(["--api-key", key] if key else [])]
    command += [word for name, value in load.items() if name not in others for word in (name, value)]
    command += others
    # Where the hub is switched off, AIPerf takes the tokenizer's folder for the name of a repository.
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
    """AIPerf's figures, its milliseconds as seconds."""
    requests, good = (round(found[what]["avg"]) for what in ("completed_request_count", "request_count"))
    latencies = (found["request_latency"][what] / 1000 for what in ("avg", "p50", "p90", "p99"))
    return Outcome(
        "aiperf",
        f"AIPerf {found['aiperf_version']}: {requests} requests, {title}",
        ("pictures/s", "latency s, avg", "p50", "p90", "p99", "failed"),
        [(found["request_throughput"]["avg"], *latencies, requests - good)],
        [Goal("count", "requests that failed", requests - good, at_most=0)],
    )


if __name__ == "__main__":
    sys.exit(main())
