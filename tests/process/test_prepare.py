"""What a model does before it is ready, on the CPU. `tests/pretended_cuda` has what it does on CUDA."""

import logging
from pathlib import Path

import pytest
import torch

from app.model import diffusion as diffusion_module
from app.model.load import load
from app.model.prepare import measure
from app.settings import Settings


def test_auto_batch_limit_is_chosen_by_the_measured_seconds(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    diffusion = load(Settings(model=str(tiny_checkpoint)), "cpu")
    assert diffusion.max_jobs == 4
    seen: dict[int, float] = {}

    def choose(seconds: dict[int, float]) -> int:
        seen.update(seconds)
        return 2

    monkeypatch.setattr(diffusion_module, "choose", choose)
    with caplog.at_level(logging.INFO):
        diffusion.prepare()
    assert diffusion.max_jobs == 2
    assert list(seen) == [1, 2, 4]
    assert all(0 < seconds < 60 for seconds in seen.values())
    assert "batch limit 2: a UNet call takes rows 1 in " in caplog.text
    assert diffusion.graphs == 0


@pytest.mark.parametrize("number", [1, 3])
def test_batch_limit_that_is_set_is_not_measured(tiny_checkpoint: Path, number: int) -> None:
    diffusion = load(Settings(model=str(tiny_checkpoint), max_batch=number), "cpu")
    diffusion.prepare()
    assert diffusion.max_jobs == number


def test_rows_without_enough_memory_are_left_out_of_the_measurement() -> None:
    calls: list[int] = []

    def call(rows: int) -> None:
        calls.append(rows)
        if rows == 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    assert list(measure(call, (1, 2, 4), torch.device("cpu"))) == [1, 2]
    assert calls.count(4) == 1
    with pytest.raises(torch.OutOfMemoryError):
        measure(call, (4,), torch.device("cpu"))


def test_failing_call_ends_the_measurement() -> None:
    def call(rows: int) -> None:
        if rows == 2:
            raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        measure(call, (1, 2), torch.device("cpu"))
