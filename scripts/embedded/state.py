"""One stage of training: its optimiser, its progress bar and its saved state, to resume after an interruption."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn

AVERAGE = 0.999
"""The decay of the exponential moving average of the weights. The averaged weights are shipped."""

TILES = torch.cpu._is_amx_tile_supported()
"""Whether the processor has AMX for bfloat16, which is then twice as fast as float32, else half as fast."""

SAVE_EVERY = 120
"""Seconds between two saves."""


def fast_precision() -> torch.autocast:
    """The context that computes in bfloat16 where that is faster."""
    return torch.autocast("cpu", torch.bfloat16, enabled=TILES)


class Stage:
    """AdamW with a warm-up and a cosine decay, averaged weights, a save every two minutes.

    Each step's random numbers come from its index, so a run that was interrupted ends as one that was not.
    """

    def __init__(self, name: str, state: Path, model: nn.Module, steps: int, rate: float) -> None:
        state.mkdir(parents=True, exist_ok=True)
        self._name, self._path, self._model, self._steps, self._rate = name, state / f"{name}.pt", model, steps, rate
        self._parameters: list[Tensor] = [one for one in model.parameters() if one.requires_grad]
        self._optimiser = torch.optim.AdamW(self._parameters, rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
        self._average = [one.detach().clone() for one in self._parameters]
        self._means: dict[str, float] = {}
        self._step, self._seconds, self._saved, self._changed = 0, 0.0, time.monotonic(), False
        if self._path.exists():
            self._load()

    @property
    def seconds(self) -> float:
        """The training time of this stage over all runs, in seconds."""
        return self._seconds

    def _load(self) -> None:
        kept = torch.load(self._path, weights_only=True)
        self._model.load_state_dict(kept["model"])
        self._optimiser.load_state_dict(kept["optimiser"])
        self._average, self._step, self._seconds = kept["average"], kept["step"], kept["seconds"]

    def save(self) -> None:
        """Save the state from which a later run resumes after the last completed step."""
        kept = {
            "model": self._model.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "average": self._average,
            "step": self._step,
            "seconds": self._seconds,
        }
        part = self._path.with_suffix(".part")
        torch.save(kept, part)
        part.replace(self._path)
        self._saved = time.monotonic()

    def steps(self) -> Iterator[int]:
        """The indices of the remaining steps; the bar shows running means of the losses."""
        columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
        columns += [TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[means]}")]
        with Progress(*columns, refresh_per_second=0.2) as bar:
            task = bar.add_task(self._name, total=self._steps, completed=self._step, means="")
            while self._step < self._steps:
                began = time.monotonic()
                yield self._step
                self._step, self._changed = self._step + 1, True
                self._seconds += time.monotonic() - began
                means = " ".join(f"{name} {mean:.4f}" for name, mean in self._means.items())
                bar.update(task, completed=self._step, means=means)
                if time.monotonic() - self._saved > SAVE_EVERY:
                    self.save()
                    if not bar.console.is_terminal:
                        print(f"{self._name}: step {self._step} of {self._steps}, {means}", flush=True)

    def learn(self, total: Tensor, shown: dict[str, Tensor]) -> None:
        """One step of the optimiser, down the gradient of `total`."""
        progress = self._step / self._steps
        rate = self._rate * min(1.0, (self._step + 1) / 200) * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimiser.step()
        # A smaller decay at first, so that the average forgets the untrained weights.
        keep = min(AVERAGE, (self._step + 1) / (self._step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(self._average, self._parameters, 1 - keep)
        for name, value in shown.items():
            mean = self._means.get(name, float(value.detach()))
            self._means[name] = mean + 0.02 * (float(value.detach()) - mean)

    def finish(self) -> None:
        """Save the state and load the averaged weights into the model."""
        if self._changed:
            self.save()
        with torch.no_grad():
            for one, mean in zip(self._parameters, self._average, strict=True):
                one.copy_(mean)
