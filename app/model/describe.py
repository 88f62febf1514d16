"""The model that the settings select on this machine, as data. Loads no weights and downloads nothing."""

from dataclasses import dataclass

import torch

from app.errors import CheckpointError
from app.model import checkpoint
from app.model.batch_limit import capacity
from app.model.devices import first_line, resolve_device, resolve_dtype
from app.model.sources import resolve_model
from app.settings import Settings


@dataclass(frozen=True)
class Gpu:
    """A CUDA device. `free` and `total` memory are in bytes. `reason` says why it cannot be used; empty if it can."""

    name: str = ""
    free: int = 0
    total: int = 0
    reason: str = ""


@dataclass(frozen=True)
class BatchLimit:
    """Jobs per UNet call, of a small and of a large model. `reason` says which setting or rule gives the numbers."""

    small: int
    large: int
    reason: str


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
    """Versions, devices and the selected model.

    `cuda_build` is the CUDA version that torch is built for, or `none`. `gpus` is in the order of their indices.
    `device` is `cpu` or `cuda:N`, and `dtype` is torch's name without `torch.`.
    """

    torch: str
    cuda_build: str
    gpus: tuple[Gpu, ...]
    device: str
    dtype: str
    batch: BatchLimit
    model: Model
    files: Files

    @property
    def on_cuda(self) -> bool:
        return self.device.startswith("cuda")


def describe(settings: Settings) -> Description:
    """Describe the model on the first of the settings' devices.

    Raises:
        CheckpointError: the device cannot be used, or `IMG2IMG_MODEL` selects no checkpoint.
    """
    device = resolve_device(settings.devices.split(",")[0])
    model = resolve_model(settings.model, device)
    return Description(
        torch=torch.__version__,
        cuda_build=torch.version.cuda or "none",
        gpus=tuple(map(_gpu, range(torch.cuda.device_count()))) if torch.cuda.is_available() else (),
        device=device,
        dtype=str(resolve_dtype(settings.dtype, device)).removeprefix("torch."),
        batch=_batch_limit(settings, device),
        model=Model(model.name, model.reason),
        files=_files(settings, device, downloadable=model.folder is None and not settings.offline),
    )


def _gpu(index: int) -> Gpu:
    try:
        free, total = torch.cuda.mem_get_info(index)
        return Gpu(torch.cuda.get_device_properties(index).name, free, total)
    except RuntimeError as error:
        return Gpu(reason=first_line(error))


def _batch_limit(settings: Settings, device: str) -> BatchLimit:
    small, large = (capacity(settings.max_batch, device, large=large) for large in (False, True))
    if settings.max_batch != "auto":
        reason = "IMG2IMG_MAX_BATCH is set"
    elif small == large:
        reason = "max_batch is auto, and a GPU is expected to make more images a second together"
    else:
        reason = "max_batch is auto"
    return BatchLimit(small, large, reason)


def _files(settings: Settings, device: str, *, downloadable: bool) -> Files:
    try:
        found = checkpoint.fetch(settings.model_copy(update={"offline": True}), device)
    except CheckpointError as error:
        return Files(reason=str(error), downloadable=downloadable)
    return Files(str(found.folder), found.info.vae)
