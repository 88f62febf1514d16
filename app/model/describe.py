"""The model that the settings select on this machine, as data. Loads no weights and downloads nothing."""

from dataclasses import dataclass
from pathlib import Path

import torch

from app.errors import CheckpointError
from app.model import checkpoint
from app.model.devices import resolve_device, resolve_dtype
from app.model.gpus import driver_version, gpu_problem
from app.model.hub import read_json
from app.model.sources import resolve_model
from app.settings import Settings


@dataclass(frozen=True)
class Gpu:
    """A CUDA device. `free` and `total` memory are in bytes. `capability` is its compute capability, such as `8.6`.

    `reason` says why it cannot be used; empty if it can.
    """

    name: str = ""
    free: int = 0
    total: int = 0
    capability: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Cuda:
    """What torch and the NVIDIA driver are, and the GPUs.

    Attributes:
        torch: the version of torch.
        build: the CUDA version that torch is built for, or `none`.
        architectures: the GPU architectures that it is built for; empty if there is no usable GPU.
        driver: the version of the loaded NVIDIA driver; empty if it is not known.
        gpus: in the order of their indices; empty if torch can use none at all.
    """

    torch: str
    build: str
    architectures: tuple[str, ...] = ()
    driver: str = ""
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True)
class Model:
    """The selected checkpoint. `reason` says why it was selected."""

    name: str
    reason: str

    @property
    def embedded(self) -> bool:
        return self.name == "embedded"


@dataclass(frozen=True)
class Files:
    """The checkpoint's files on this disk.

    Attributes:
        folder: where they are; empty if not all of them are there.
        vae: the VAE's name, or `checkpoint`; empty if not all files are there.
        reason: why the files cannot be loaded; empty if they can.
        downloadable: the missing files come from the hub, and the first start may download them.
    """

    folder: str = ""
    vae: str = ""
    reason: str = ""
    downloadable: bool = False


@dataclass(frozen=True, kw_only=True)
class Description:
    """The selected device and model.

    `device` is `cpu` or `cuda:N`. `dtype` is torch's name without `torch.`, and `dtype_reason` says why it is that.
    `max_batch` is the number of jobs that share a UNet call; None if it is measured when the model is loaded.
    """

    device: str
    dtype: str
    dtype_reason: str
    max_batch: int | None
    model: Model
    files: Files

    @property
    def on_cuda(self) -> bool:
        return self.device.startswith("cuda")


def describe_cuda() -> Cuda:
    """Describe torch's build, the driver and each GPU. Raises nothing, whatever state they are in."""
    usable = torch.cuda.is_available()
    return Cuda(
        torch=torch.__version__,
        build=torch.version.cuda or "none",
        architectures=tuple(torch.cuda.get_arch_list()) if usable else (),
        driver=driver_version(),
        gpus=tuple(map(_gpu, range(torch.cuda.device_count()))) if usable else (),
    )


def describe(settings: Settings) -> Description:
    """Describe the model on the first of the settings' devices.

    Raises:
        CheckpointError: one of the devices cannot be used, or `IMG2IMG_MODEL` selects no checkpoint.
    """
    device, *_ = [resolve_device(name) for name in settings.devices.split(",")]
    model = resolve_model(settings.model, device)
    files = _files(settings, device, downloadable=model.folder is None and not settings.offline)
    dtype, dtype_reason = _dtype(settings, device, files.folder)
    return Description(
        device=device,
        dtype=str(dtype).removeprefix("torch."),
        dtype_reason=dtype_reason,
        max_batch=None if settings.max_batch == "auto" else settings.max_batch,
        model=Model(model.name, model.reason),
        files=files,
    )


def _dtype(settings: Settings, device: str, folder: str) -> tuple[torch.dtype, str]:
    """The dtype and its reason. `folder` is the checkpoint's, or empty if not all of its files are there."""
    if dtype := resolve_dtype(settings.dtype, device):
        return dtype, "dtype is auto, on CUDA" if settings.dtype == "auto" else "IMG2IMG_DTYPE is set"
    if not folder:
        return torch.float32, "the first start measures whether a large model is faster in bfloat16"
    # diffusers takes seconds to import, and only this needs it.
    from diffusers import UNet2DConditionModel

    from app.model.cpu_probe import choose_dtype

    config = read_json(Path(folder) / "unet" / "config.json")
    try:
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(config)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{folder}/unet/config.json cannot be used: {error}") from error
    return choose_dtype(unet)


def _gpu(index: int) -> Gpu:
    if problem := gpu_problem(index):
        return Gpu(reason=problem)
    free, total = torch.cuda.mem_get_info(index)
    properties = torch.cuda.get_device_properties(index)
    return Gpu(properties.name, free, total, f"{properties.major}.{properties.minor}")


def _files(settings: Settings, device: str, *, downloadable: bool) -> Files:
    try:
        found = checkpoint.fetch(settings.model_copy(update={"offline": True}), device)
    except CheckpointError as error:
        return Files(reason=str(error), downloadable=downloadable)
    return Files(str(found.folder), found.info.vae)
