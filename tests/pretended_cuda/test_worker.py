"""The worker's loop with a device that is behind it."""

from pathlib import Path
from typing import Any, cast

import pytest

from app.engine.messages import Done, Started
from app.model.diffusion import SdxlDiffusion
from app.worker.warmup import warm_up
from tests.pretended_cuda.conftest import Load, RunPython
from tests.pretended_cuda.device import backlog, occupy
from tests.pretended_cuda.test_graphs import job
from tests.support.workers import Bench


@pytest.fixture
def bench(load_tiny: Load) -> Bench:
    diffusion: SdxlDiffusion = load_tiny("cuda:0", max_batch=4)
    warm_up(diffusion, "off")
    return Bench(prepared=False, diffusion=cast(Any, diffusion))


def test_host_is_at_most_one_unet_call_ahead_of_the_device(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    unfinished: list[int] = []
    tick = bench.diffusion.tick

    def slow(states: Any) -> Any:
        unfinished.append(sum(not call.ready for call in calls))
        occupy(0, 0.05)
        calls.append(tick(states))
        return calls[-1]

    monkeypatch.setattr(bench.diffusion, "tick", slow)
    bench.put(job("long", 12))
    bench.run()
    assert bench.names(Done) == ["long"]
    assert len(unfinished) == 12
    assert max(unfinished) == 1


def test_job_that_arrives_during_a_decode_is_admitted_before_its_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = bench.diffusion.finish

    def slow(states: Any) -> Any:
        occupy(0, 0.5)
        return finish(states)

    bench.put(job("first", 1))
    with monkeypatch.context() as patched:
        patched.setattr(bench.diffusion, "finish", slow)
        bench.run_once(2)
    assert backlog(0) > 0
    bench.put(job("second", 1, grey=8))
    bench.run()
    order = [(type(message), message.job_id) for message in bench.sent if isinstance(message, Started | Done)]
    assert order.index((Started, "second")) < order.index((Done, "first"))


LOST = """
    import os
    from app.model.load import load
    from app.settings import Settings
    from tests.pretended_cuda.device import Devices, occupy
    from tests.pretended_cuda.test_graphs import job
    from tests.support.workers import Bench

    bench = Bench(job("lost", 1), prepared=False, diffusion=load(Settings(model={model!r}), "cuda"))
    # Otherwise the image may be there at once.
    occupy(0, 30)
    while not bench.worker._decoding:
        bench.run_once()
    Devices.here().lose(0)
    try:
        bench.run_once()
    except SystemExit as exit:
        print(exit.code, bench.sent[-1], flush=True)
    # Torch aborts when it frees pinned memory of a lost device.
    os._exit(0)
"""


def test_gpu_that_is_lost_during_a_decode_ends_the_worker_as_device(
    tiny_checkpoint: Path, run_python: RunPython
) -> None:
    assert run_python(LOST.format(model=str(tiny_checkpoint))) == ["3 WorkerFailing(cause='device')"]
