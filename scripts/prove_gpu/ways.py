"""The ways of running the model, and diffusers' own; how the report calls them and its tables."""

from dataclasses import dataclass, field
from typing import Literal

from scripts.prove_gpu.stages import Weights

JOBS = (1, 2, 4)
"""Numbers of jobs on board."""

WAYS_TABLE, STARTS, DIFFUSERS, IMAGES, SERVED = "Ways", "Starts", "diffusers", "Images", "Served"
"""The tables' titles."""

Vae = Literal["half", "float32", "tiny"]


@dataclass(frozen=True)
class Way:
    """Settings of the service, and a change that no setting makes (`scripts.prove_gpu.way.EXPERIMENTS`)."""

    name: str
    settings: dict[str, str] = field(default_factory=dict)
    vae: Vae = "half"
    experiment: str = ""

    @property
    def compiles(self) -> bool:
        return "IMG2IMG_COMPILE" in self.settings

    @property
    def file(self) -> str:
        """The name of this way's files."""
        return self.name.replace(" ", "-").replace(",", "")


_FP16 = {"IMG2IMG_FP16_ACCUMULATION": "1"}
_COMPILE = {"IMG2IMG_COMPILE": "default"}
PLAIN = Way("CUDA graphs")
COMPILED = Way("compile default", _COMPILE)
MAX = Way("compile max", {"IMG2IMG_COMPILE": "max"})
WAYS = (
    PLAIN,
    Way("no CUDA graphs", {"IMG2IMG_CUDA_GRAPHS": "0"}),
    Way("tiny VAE", vae="tiny"),
    Way("VAE in float32", vae="float32"),
    Way("float16 accumulation", _FP16),
    COMPILED,
)
EXPERIMENTS = (
    Way("cudnn.benchmark", experiment="cudnn.benchmark"),
    Way("contiguous UNet", experiment="contiguous UNet"),
    Way("contiguous VAE", experiment="contiguous VAE"),
    Way("math attention in the VAE", experiment="math attention in the VAE"),
    Way("compile default, tiny VAE", _COMPILE, vae="tiny"),
    Way("compile default, float16 accumulation", {**_COMPILE, **_FP16}),
)
ALL = (*WAYS, MAX, *EXPERIMENTS)
EXACT = (PLAIN, COMPILED, MAX)
"""The ways with the checkpoint's own VAE that take no exactness for speed."""

PEERS = {"eager": "diffusers", "max-autotune": "diffusers, compiled with max-autotune"}
"""What `scripts.prove_gpu.peer` measures, and its name in the report."""


def settings(weights: Weights, way: Way) -> dict[str, str]:
    """The settings of a way as environment variables."""
    vae = {"half": weights.vae, "float32": "checkpoint", "tiny": weights.tiny_vae}[way.vae]
    return {"IMG2IMG_MODEL": weights.model, "IMG2IMG_VAE": vae, "IMG2IMG_MAX_BATCH": str(max(JOBS)), **way.settings}
