"""`IMG2IMG_COMPILE`: Inductor, Triton and ptxas are real here, and make code for an A10G."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from app.model.diffusion import SdxlDiffusion
from app.model.load import load
from app.settings import Settings
from app.worker.warmup import warm_up
from tests.pretended_cuda import device
from tests.pretended_cuda.device import Devices
from tests.pretended_cuda.test_graphs import MIXED, job, run

pytestmark = [
    # Inductor advises TensorFloat32 for the VAE in float32. This project decides that by itself.
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning"),
    pytest.mark.timeout(1800),
]


@pytest.fixture(scope="module")
def cache() -> Path:
    """Compiled code, which is kept for the next run: the first one takes minutes."""
    return Path(os.environ.get("PRETENDED_CUDA", "/nonexistent")).parent / "compiled"


@pytest.fixture(scope="module")
def half_vae(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint's VAE, to be run in float16."""
    folder = tmp_path_factory.mktemp("vae")
    weights = tiny_checkpoint / "vae" / "diffusion_pytorch_model.fp16.safetensors"
    shutil.copy(weights, folder / "diffusion_pytorch_model.safetensors")
    config = (tiny_checkpoint / "vae" / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"force_upcast": true', '"force_upcast": false'))
    return folder


@pytest.fixture(scope="module")
def ready(tiny_checkpoint: Path, half_vae: Path, cache: Path) -> SdxlDiffusion:
    """As in a worker that is ready."""
    settings = Settings(
        model=str(tiny_checkpoint), vae=str(half_vae), max_batch=4, compile="default", compile_cache=cache
    )
    diffusion = load(settings, "cuda:0")
    warm_up(diffusion, "default")
    return diffusion


@pytest.fixture
def no_recompilation(ready: SdxlDiffusion) -> Iterator[None]:
    """Code that would be compiled anew raises."""
    with torch.compiler.set_stance("fail_on_recompile"):
        device.reset()
        yield


@pytest.mark.usefixtures("no_recompilation")
def test_no_request_compiles_or_captures(ready: SdxlDiffusion, devices: Devices) -> None:
    recorded = ready.graphs
    for jobs in MIXED:
        run(ready, jobs)
    assert devices.counters().captures == 0
    assert ready.graphs == recorded > 0
    assert devices.counters().convolutions == 0


@pytest.mark.usefixtures("no_recompilation")
def test_image_that_is_not_finite_is_decoded_anew_without_compiling(ready: SdxlDiffusion, devices: Devices) -> None:
    weights = [parameter.data_ptr() for parameter in ready.pipe.vae.parameters()]
    state = ready.admit(job("overflows", 1))
    ready.tick([state])
    (decoding,) = ready.finish([state])
    rgb, _ = decoding.download.result()
    # The image is not finite, and the latents are: float16 was too small for the VAE.
    decoding.download._tensors = [rgb, torch.tensor([False, True])]
    result = ready.collect(decoding)
    assert result is not None
    assert result.redecoded
    assert ready.pipe.vae.dtype == torch.float16
    assert [parameter.data_ptr() for parameter in ready.pipe.vae.parameters()] == weights
    assert devices.counters().captures == 0
    run(ready, [job("after", 2)])


@pytest.mark.usefixtures("no_recompilation")
def test_latents_that_are_not_finite_are_not_decoded_anew(ready: SdxlDiffusion, devices: Devices) -> None:
    state = ready.admit(job("broken", 1))
    ready.tick([state])
    (decoding,) = ready.finish([state])
    rgb, _ = decoding.download.result()
    decoding.download._tensors = [rgb, torch.tensor([False, False])]
    before = devices.counters()
    assert ready.collect(decoding) is None
    after = devices.counters()
    assert (after.kernels, after.graph_launches) == (before.kernels, before.graph_launches)
