"""The GPU of a worker's CUDA calls. Runs without a GPU: torch's entry points are replaced by recorders."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from app.errors import CheckpointError
from app.model import transfer
from app.model.load import load
from app.model.torch_errors import fault
from app.settings import Settings

LAST = torch.device("cuda:1")


class RecordedEvent:
    """The part of `torch.cuda.Event` that `mark` uses."""

    def __init__(self, enable_timing: bool, blocking: bool) -> None:
        self.enable_timing = enable_timing
        self.blocking = blocking
        self.streams: list[object] = []

    def record(self, stream: object = None) -> None:
        self.streams.append(stream)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there CUDA may have begun before this test")
def test_worker_selects_its_gpu_before_any_other_cuda_call(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def begin() -> None:
        """torch calls this before a process's first tensor reaches a GPU."""
        calls.append("CUDA begins")
        raise RuntimeError("there is no GPU")

    cuda = torch.cuda
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "device_count", lambda: 2)
    monkeypatch.setattr(cuda, "set_device", lambda device: calls.append(f"select {device}"))
    monkeypatch.setattr(cuda, "_lazy_init", begin)
    with pytest.raises(CheckpointError, match="torch cannot use cuda:1: there is no GPU"):
        load(Settings(model=str(tiny_checkpoint)), str(LAST))
    assert calls[:2] == ["select 1", "CUDA begins"]
    assert set(calls[2:]) <= {"CUDA begins"}


def test_device_without_a_number_is_selected_as_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    selected: list[torch.device] = []
    loaded: list[str] = []

    def load_pipeline(settings: Settings, device: str) -> None:
        loaded.append(device)
        raise StopIteration

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", selected.append)
    monkeypatch.setattr("app.model.gpus.gpu_problem", lambda index: "")
    monkeypatch.setattr("app.model.pipeline.load_pipeline", load_pipeline)
    with pytest.raises(StopIteration):
        load(Settings(), "cuda")
    assert (selected, loaded) == ([torch.device("cuda:0")], ["cuda:0"])


def test_cpu_selects_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    selected: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", selected.append)
    transfer.select(torch.device("cpu"))
    assert selected == []


def test_mark_is_recorded_on_the_stream_of_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def current_stream(device: torch.device | None = None) -> SimpleNamespace:
        return SimpleNamespace(device=device or torch.device("cuda:0"))

    monkeypatch.setattr(torch.cuda, "Event", RecordedEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    event = transfer.mark(LAST)
    assert event.enable_timing
    assert event.blocking, "a wait must not keep a core busy"
    assert [stream.device for stream in event.streams] == [LAST]


def test_download_without_proof_of_arrival_gives_no_image() -> None:
    first, second = (transfer.Download(torch.device("cpu"), [torch.tensor(value)]) for value in (7, 8))
    assert [tensor.item() for tensor in first.result()] == [7]
    # As if the host read the memory of an earlier download.
    second._receipt = first._receipt
    with pytest.raises(transfer.TransferError, match="has not arrived") as raised:
        second.result()
    assert fault(raised.value) == "device", "the worker is replaced, and its jobs run again"
