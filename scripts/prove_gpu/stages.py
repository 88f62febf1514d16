"""The stages by name, and what each of them gets. Uses the standard library only."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 515.0
"""The most time of a stage. It gets `GRACE_SECONDS` less, and so much more to end: less than nine minutes in all."""

GRACE_SECONDS = 20.0

STAGES = {
    "facts": "scripts.prove_gpu.facts:run",
    "checkpoint": "scripts.prove_gpu.checkpoint:run",
    "tests": "scripts.prove_gpu.gpu_tests:run",
    "bench": "scripts.prove_gpu.bench:run",
    "bench-max": "scripts.prove_gpu.bench:run_max",
    "reference": "scripts.prove_gpu.reference:run",
    "quality": "scripts.prove_gpu.quality:run",
    "serve": "scripts.prove_gpu.serve:run",
    "chaos": "scripts.prove_gpu.endurance:run_chaos",
    "soak": "scripts.prove_gpu.endurance:run_soak",
    "experiments": "scripts.prove_gpu.bench:run_experiments",
}
"""The `module:function` of each stage, in the order in which they run."""

NEED_WEIGHTS = {"bench", "bench-max", "reference", "quality", "serve", "chaos", "soak", "experiments"}


class StageFailed(Exception):
    """A stage cannot go on; the message says why."""


class Weights(NamedTuple):
    """Folders of weights, and what they are.

    Attributes:
        name: what the report calls them.
        model: the checkpoint.
        vae: its VAE, as one that float16 is enough for.
        tiny_vae: a tiny VAE; empty if there is none on this disk.
    """

    name: str
    model: str
    vae: str
    tiny_vae: str


@dataclass(frozen=True)
class Context:
    """What a stage gets.

    Attributes:
        out: the folder of the report and the logs.
        work: the folder of weights, compiled code and images, which are kept for the next run.
        size: of the model: `tiny` is for trying the stages.
        end: the reading of `time.monotonic()` at which the stage has to be over.
    """

    out: Path
    work: Path
    size: Literal["full", "tiny"]
    end: float

    @property
    def images(self) -> Path:
        """The folder of the images of each way, which the stage `quality` compares."""
        return self.work / "images"

    def left(self) -> float:
        """Seconds that are left."""
        return self.end - time.monotonic()

    @property
    def weights_file(self) -> Path:
        """Says where the weights are; the stage `checkpoint` writes it."""
        return self.work / "weights.json"

    def weights(self) -> Weights:
        """The weights that the stage `checkpoint` has found or made.

        Raises:
            StageFailed: there are none.
        """
        try:
            found = Weights(*json.loads(self.weights_file.read_text()))
        except FileNotFoundError:
            found = None
        if found is None or not Path(found.model).is_dir():
            raise StageFailed("there are no weights yet: run the stage checkpoint first")
        return found
