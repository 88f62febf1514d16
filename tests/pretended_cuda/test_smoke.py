"""The pretended runtime itself: torch's CUDA build runs on it, and it counts, is late and fails as it says."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.pretended_cuda import device
from tests.pretended_cuda.device import Devices, backlog, log, occupy, reset


def new_event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]


def passed(event: torch.cuda.Event) -> bool:
    return bool(event.query())  # type: ignore[no-untyped-call]


def test_torch_sees_two_a10gs() -> None:
    assert torch.version.cuda
    assert torch.cuda.is_available()
    assert [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] == ["NVIDIA A10G"] * 2
    assert torch.cuda.get_device_capability(1) == (8, 6)
    free, total = torch.cuda.mem_get_info(0)
    assert 0 < free < total == 22_500_000_000


def test_layers_launch_kernels_gemms_and_convolutions(devices: Devices) -> None:
    with torch.inference_mode(), torch.device("cuda"):
        image = torch.nn.Conv2d(4, 8, 3, padding=1)(torch.zeros(1, 4, 64, 64))
        rows = torch.nn.Linear(64, 32)(image)
        torch.nn.functional.silu(rows)
    counted = devices.counters()
    assert rows.shape == (1, 8, 64, 32)
    assert (counted.convolutions, counted.gemms) == (1, 1)
    assert counted.launches > 0
    assert counted.busy_ns > 0
    assert devices.counters(1).launches == 0


def test_copy_to_the_host_arrives_when_the_stream_has_got_there() -> None:
    host = torch.full((1000,), 7, dtype=torch.uint8, pin_memory=True)
    source = torch.empty(1000, dtype=torch.uint8, device="cuda")
    occupy(0, 0.2)
    arrival = new_event()
    host.copy_(source, non_blocking=True)
    arrival.record()
    assert backlog(0) > 0.1
    assert not passed(arrival)
    assert set(host.tolist()) == {7}
    arrival.synchronize()
    assert set(host.tolist()) == {1}


@pytest.mark.parametrize("size", [1, 8, 4096])
def test_small_upload_comes_back_as_it_went(size: int) -> None:
    sent = torch.arange(size, dtype=torch.int64).to(torch.uint8)
    there = sent.pin_memory().to("cuda:1", non_blocking=True)
    assert there.clone().cpu().tolist() == there.cpu().tolist() == sent.tolist()


def test_other_copies_to_the_host_hold_ones() -> None:
    sent = torch.full((4097,), 9, dtype=torch.uint8)
    assert set(sent.to("cuda").cpu().tolist()) == {1}
    assert set(sent[:100].to("cuda")[:50].cpu().tolist()) == {1}
    assert torch.isfinite(torch.zeros(3, device="cuda")).all().item()


def test_copies_and_waits_are_counted_by_kind(devices: Devices) -> None:
    pinned = torch.zeros(100, pin_memory=True)
    reset()
    there = pinned.to("cuda", non_blocking=True)
    torch.zeros(100).to("cuda", non_blocking=True)
    there.clone()
    pinned.copy_(there, non_blocking=True)
    there.cpu()
    torch.cuda.current_stream().synchronize()
    event = new_event()
    event.record()
    passed(event)
    event.synchronize()
    torch.cuda.synchronize()
    counted = devices.counters()
    assert (counted.copies_h2d, counted.pageable_h2d) == (2, 1)
    assert counted.copies_d2d == 1
    assert (counted.copies_d2h, counted.pageable_d2h) == (2, 1)
    # `cpu` copies to memory that is not pinned, and then waits for the stream.
    assert counted.stream_syncs == 2
    assert (counted.event_records, counted.event_queries, counted.event_syncs) == (1, 1, 1)
    assert counted.device_syncs == 1
    assert counted.waited_ns > 0


def test_event_of_one_device_is_not_recorded_in_another_s_stream() -> None:
    event = new_event()
    event.record(torch.cuda.current_stream(0))
    with pytest.raises(RuntimeError, match="device"):
        event.record(torch.cuda.current_stream(1))


def test_graph_is_captured_once_and_replayed_without_launches(devices: Devices) -> None:
    source = torch.zeros(8, device="cuda")
    torch.cuda.synchronize()
    reset()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        source.add_(1)
        source.add_(1)
    captured = devices.counters()
    graph.replay()
    graph.replay()
    replayed = devices.counters()
    assert (captured.captures, captured.captured, captured.launches) == (1, 2, 0)
    assert (replayed.graph_launches, replayed.launches, replayed.captures) == (2, 0, 1)


def test_call_that_a_capture_forbids_makes_it_invalid(devices: Devices) -> None:
    source = torch.zeros(8, device="cuda")

    def capture() -> None:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            source.add_(1)
            torch.cuda.current_stream().synchronize()

    with pytest.raises(RuntimeError, match="captur"):
        capture()
    counted = devices.counters()
    assert (counted.captures, counted.failed_captures) == (0, 1)
    assert not torch.cuda.is_current_stream_capturing()


def test_capture_fails_as_often_as_wanted(devices: Devices) -> None:
    source = torch.zeros(8, device="cuda")

    def capture() -> None:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            source.add_(1)

    devices.fail_captures(1)
    with pytest.raises(RuntimeError, match="previous error during capture"):
        capture()
    capture()
    counted = devices.counters()
    assert (counted.captures, counted.failed_captures) == (1, 1)


def test_memory_ends_at_the_limit(devices: Devices) -> None:
    torch.cuda.empty_cache()
    devices.limit_memory(0, devices.counters().allocated + 30_000_000)
    kept = torch.empty(20_000_000, dtype=torch.uint8, device="cuda")
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(20_000_000, dtype=torch.uint8, device="cuda")
    del kept
    torch.empty(20_000_000, dtype=torch.uint8, device="cuda")


LOST = """
import torch
from tests.pretended_cuda.device import Devices

def failure(call):
    try:
        call()
        return "works"
    except RuntimeError as error:
        return str(error).partition("\\n")[0]

there, other = torch.zeros(8, device="cuda:0"), torch.zeros(8, device="cuda:1")
torch.cuda.set_device(1)
Devices.here().lose(0)
print(failure(lambda: other + 1))
for call in (lambda: torch.cuda.synchronize(0), lambda: there + 1, there.cpu, lambda: there @ there):
    print(failure(call))
"""


def test_lost_device_fails_every_call_and_the_other_works() -> None:
    # In a process of its own: torch ends one that frees pinned memory of a lost device.
    done = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "works"
    assert lines[1:] == ["CUDA error: unspecified launch failure"] * 4


def test_log_has_the_calls_in_their_order() -> None:
    source, host = torch.zeros(8, device="cuda"), torch.zeros(8, pin_memory=True)
    event = new_event()
    with log() as lines:
        source.add_(1)
        occupy(0, 0.5)
        host.copy_(source, non_blocking=True)
        event.record()
        event.synchronize()
    kinds = [line.split()[2] for line in lines]
    assert kinds == ["kernel", "occupy", "copy_d2h", "record", "synchronise", "arrived"]
    assert {line.split()[0] for line in lines} == {"0"}


def test_shared_control_shows_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "control"
    monkeypatch.setenv("PRETENDED_CUDA_CONTROL", str(path))
    code = "import torch; torch.zeros(8, device='cuda:1').add_(1); torch.cuda.synchronize(1)"
    subprocess.run([sys.executable, "-c", code], check=True)
    shared = Devices.of(path)
    assert (shared.counters(0).device_syncs, shared.counters(1).device_syncs) == (0, 1)
    shared.remove_all(device.NO_DEVICE)
    code = "import torch; print(torch.cuda.is_available())"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"
