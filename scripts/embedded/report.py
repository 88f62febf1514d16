"""Prints the evaluation of the shipped checkpoint and draws its contact sheet."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from scripts.embedded import evaluate, judge, sheet
from scripts.embedded.sources import Sources
from scripts.embedded.vocabulary import CONCEPTS

ROOT = Path(__file__).parent.parent.parent
DEMO = ROOT / "scripts" / "demo.png"
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
"""The strengths that differ at four steps."""


def measure(sources: Sources, state: Path, checkpoint: Path, judge_steps: int) -> dict[str, Any]:
    """All figures, by name; shares and correlations from 0 to 1."""
    critic = judge.train(sources, state, judge_steps)
    first, five = judge.accuracy(critic, sources)
    facts: dict[str, Any] = {"judge_first": first, "judge_first_five": five}
    pipe = evaluate.load(checkpoint)
    starts = evaluate.starts(sources, DEMO)
    for strength in (0.9, 1.0):
        found = evaluate.follows(pipe, critic, starts, evaluate.common(), strength)
        facts[f"follows_{strength}"] = found.five
        facts[f"follows_{strength}_first"] = found.first
        facts[f"missed_{strength}"] = found.missed
    unseen = evaluate.kept_back()
    found = evaluate.follows(pipe, critic, starts, unseen, 1.0)
    facts |= {"unseen_words": len(unseen), "unseen": found.five, "unseen_first": found.first}
    facts |= {"unseen_missed": found.missed, "chance": 5 / len(CONCEPTS)}
    images, prompts = evaluate.held_out_images(sources, DEMO), ["a wizard", "a pizza", "a rocket"]
    facts["layout"] = {strength: evaluate.keeps(pipe, images, prompts, strength) for strength in STRENGTHS}
    return facts


def table(facts: dict[str, Any]) -> Table:
    """The figures as a table."""
    shown = Table("what", "measured", "bar")

    def share(name: str) -> str:
        return f"{facts[name]:.1%}"

    rows: list[tuple[str, str, str]] = [
        (
            "classifier, held-out images: first / first five",
            f"{share('judge_first')} / {share('judge_first_five')}",
            "",
        ),
        ("asked name among the first five, strength 0.9", share("follows_0.9"), "70 %"),
        ("asked name among the first five, strength 1.0", share("follows_1.0"), "85 %"),
        (f"{facts['unseen_words']} words never trained on, strength 1.0", share("unseen"), f"chance {share('chance')}"),
    ]
    rows += [(f"layout kept, strength {strength}", f"{kept:.2f}", "") for strength, kept in facts["layout"].items()]
    for row in rows:
        shown.add_row(*row)
    return shown


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="evaluate_embedded", description=__doc__)
    parser.add_argument(
        "--state", type=Path, default=ROOT / "out" / "embedded", help="the data folder of train_embedded"
    )
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "app" / "model" / "embedded")
    parser.add_argument("--judge-steps", type=int, default=2000, help="steps of the classifier's training")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="only draw the contact sheet into this file")
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    sources = Sources(options.state / "sources")
    if options.sheet:
        sheet.write(evaluate.load(options.checkpoint), evaluate.starts(sources, DEMO), options.sheet)
        return
    facts = measure(sources, options.state / "state", options.checkpoint, options.judge_steps)
    Console().print(table(facts))
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
