"""The report of `img2img doctor`: facts about this machine and the selected model, and advice derived from them."""

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app.cli.serve import check_address
from app.errors import CheckpointError, Misconfigured
from app.main import create_app
from app.model import hub
from app.model.describe import Cuda, Description, Files, Gpu, describe, describe_cuda
from app.model.toolchain import missing_tools
from app.observability import otel_env
from app.settings import Settings, unknown_variables

ENOUGH_MEMORY = {"float32": 16e9, "bfloat16": 10e9, "float16": 10e9}
"""Bytes by dtype: a full-size model on the CPU takes 14.7 GB in float32 and 8.7 in bfloat16."""

ENOUGH_DISK = 8e9
"""Bytes; SDXL-Turbo in float16 and its VAE are 7.1 GB."""

_MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_DRIVER_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts about settings, machine and model; sizes in bytes. `problems` would keep the service from starting.

    `model` is None if the settings select none; the problems then say why.
    """

    vae_setting: str
    devices_setting: str
    compile_setting: str
    missing_tools: str
    cuda: Cuda
    model: Description | None
    problems: tuple[str, ...]
    unknown: tuple[str, ...]
    driver: str | None
    visible_devices: str | None
    cores: int
    memory: int
    cache: str
    cache_writable: bool
    cache_free: int


def gather(settings: Settings) -> Facts:
    """Collect all facts. Loads no weights and downloads nothing."""
    model, problems = None, list(_misconfigured(settings))
    try:
        model = describe(settings)
        if model.files.reason and not model.files.downloadable:
            problems.append(model.files.reason)
    except CheckpointError as error:
        problems.append(str(error))
    cache = settings.hub_cache or hub.default_cache()
    # The first download creates the cache, so its nearest existing parent counts. `os.path.exists` is false, instead of
    # raising, for a path in an unreadable folder.
    existing = next(folder for folder in (cache.absolute(), *cache.absolute().parents) if os.path.exists(folder))  # noqa: PTH110
    return Facts(
        vae_setting=settings.vae,
        devices_setting=settings.devices,
        compile_setting=settings.compile,
        missing_tools=missing_tools(on_cuda=model is not None and model.on_cuda),
        cuda=describe_cuda(),
        model=model,
        problems=tuple(problems),
        unknown=tuple(unknown_variables(os.environ)),
        driver=driver(),
        visible_devices=os.environ.get("NVIDIA_VISIBLE_DEVICES"),
        cores=len(os.sched_getaffinity(0)),
        memory=memory(_MEMORY_LIMITS),
        cache=str(cache),
        cache_writable=existing.is_dir() and os.access(existing, os.W_OK),
        cache_free=shutil.disk_usage(existing).free,
    )


def _misconfigured(settings: Settings) -> Iterator[str]:
    """Reasons for `img2img serve` not to start. A taken port is none: a running service may hold it."""
    for check in (
        lambda: otel_env.validate_otel_env(dict(os.environ)),
        lambda: check_address(settings.host, 0),
        lambda: create_app(settings),
    ):
        try:
            check()
        except Misconfigured as error:
            yield str(error)


def driver() -> str | None:
    """Name, driver version and memory of each GPU, from `nvidia-smi`; None if that is not installed."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DRIVER_SECONDS, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi failed: {error}"
    output = "; ".join((done.stdout or done.stderr).split("\n")).strip("; ")
    return output if done.returncode == 0 else f"nvidia-smi failed: {output}"


def memory(limits: Iterable[Path]) -> int:
    """Bytes of memory that this process may use: the machine's, or a container's limit from one of the files."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    texts = [path.read_text().strip() for path in limits if path.is_file()]
    return min([machine, *(int(text) for text in texts if text.isdecimal())])


def advise(facts: Facts) -> list[str]:
    """Sentences about what would fail or be slow, and what to do, most important first."""
    model = facts.model
    advice = [*facts.problems, *facts.unknown]
    if model is None or not model.on_cuda:
        advice += _why_no_cuda(facts)
    if model:
        advice += _about_speed(facts, model)
        advice += _about_files(facts, model.files)
    return advice


def _why_no_cuda(facts: Facts) -> Iterator[str]:
    if facts.visible_devices in ("", "none", "void"):
        yield "NVIDIA_VISIBLE_DEVICES hides every GPU from this container: start it with --gpus all."
    elif facts.driver is None and facts.cuda.driver:
        yield f"The host has NVIDIA driver {facts.cuda.driver}: start this container with --gpus all to use its GPUs."
    elif facts.driver is None:
        yield "There is no NVIDIA driver here (no nvidia-smi): images can be made on the CPU only."
    elif facts.devices_setting.startswith("cpu"):
        yield "IMG2IMG_DEVICES names the CPU, though there is an NVIDIA driver: auto takes the GPU."
    elif facts.cuda.build == "none":
        yield "There is an NVIDIA driver, but this torch is built without CUDA: install its CUDA build."
    elif facts.model:
        # Without a model, the problems say what is wrong with the GPU.
        yield "There is an NVIDIA driver, but torch finds no GPU: CUDA_VISIBLE_DEVICES may hide it."


def _about_speed(facts: Facts, model: Description) -> Iterator[str]:
    cuda, dtype = model.on_cuda, model.dtype
    if model.model.embedded:
        yield "The embedded model is small and draws icons only: IMG2IMG_MODEL=stabilityai/sdxl-turbo draws anything."
    elif not cuda:
        yield "A full-size model takes most of a minute for each image on the CPU: use a CUDA GPU."
    if not model.model.embedded and facts.memory < ENOUGH_MEMORY[dtype]:
        enough_gb = _gb(ENOUGH_MEMORY[dtype])
        yield f"{_gb(facts.memory)} of memory may be too little for a full-size model in {dtype}: take {enough_gb}."
    if cuda and dtype == "float32":
        yield "float32 on CUDA takes twice the memory and time of float16: set IMG2IMG_DTYPE=auto."
    if cuda and dtype == "float16" and facts.vae_setting == "checkpoint":
        yield "SDXL's own VAE has to run in float32, which is slow: set IMG2IMG_VAE=auto for one that runs in float16."
    if cuda and facts.compile_setting == "off":
        yield "IMG2IMG_COMPILE=default fuses kernels: the first start takes minutes, and an image may take less time."
    if facts.compile_setting != "off" and facts.missing_tools:
        yield f"IMG2IMG_COMPILE={facts.compile_setting} {facts.missing_tools}"
    if not cuda and facts.compile_setting != "off":
        yield "IMG2IMG_COMPILE gains little on the CPU: off is best there."
    if not cuda and dtype == "float16":
        yield "float16 on the CPU is slow and may overflow: set IMG2IMG_DTYPE=auto."


def _about_files(facts: Facts, files: Files) -> Iterator[str]:
    if not files.downloadable:
        return
    if "img2img download" not in files.reason:
        # The hub does not have the files either.
        yield files.reason
        return
    yield "The first start downloads the model; `img2img download` does it ahead of that."
    if not facts.cache_writable:
        yield f"{facts.cache} cannot be written to: set IMG2IMG_HUB_CACHE to a folder that can."
    if facts.cache_free < ENOUGH_DISK:
        yield f"{_gb(facts.cache_free)} are free for {facts.cache}, and SDXL-Turbo takes 7: make room."


def render(facts: Facts, advice: list[str]) -> str:
    """The report as text: a line for each fact, then the advice."""
    lines = {
        **_model_lines(facts),
        "driver": facts.driver
        or (f"{facts.cuda.driver} (no nvidia-smi)" if facts.cuda.driver else "none (no nvidia-smi)"),
        "NVIDIA_VISIBLE_DEVICES": facts.visible_devices or "not set",
        "CPU cores": str(facts.cores),
        "memory": _gb(facts.memory),
        "cache": f"{facts.cache}, {_gb(facts.cache_free)} free" + ("" if facts.cache_writable else ", read-only"),
    }
    width = max(map(len, lines))
    table = [f"{name:<{width}}  {value}" for name, value in lines.items()]
    return "\n".join([*table, "", *(f"- {sentence}" for sentence in advice or ["All is well."])])


def as_dict(facts: Facts, advice: list[str]) -> dict[str, Any]:
    """The report as JSON values. `model` has the lines of the text report."""
    return {**asdict(facts), "model": _model_lines(facts), "advice": advice}


def _model_lines(facts: Facts) -> dict[str, str]:
    cuda, model = facts.cuda, facts.model
    lines = {
        "torch": cuda.torch,
        "CUDA build": " ".join([cuda.build, *([f"({', '.join(cuda.architectures)})"] if cuda.architectures else [])]),
        **{f"cuda:{index}": _gpu_line(gpu) for index, gpu in enumerate(cuda.gpus)},
    }
    if model is None:
        return lines
    files = model.files
    return {
        **lines,
        "device": model.device,
        "dtype": f"{model.dtype} ({model.dtype_reason})",
        "batch": _batch_line(model.max_batch),
        "model": f"{model.model.name} ({model.model.reason})",
        **({"VAE": files.vae} if files.vae else {}),
        "files": files.folder or f"{'not all here yet' if files.downloadable else 'cannot be used'}: {files.reason}",
    }


def _gpu_line(gpu: Gpu) -> str:
    if gpu.reason:
        return f"cannot be used: {gpu.reason}"
    return f"{gpu.name}, compute capability {gpu.capability}, {gpu.free / 1e9:.1f} of {_gb(gpu.total)} free"


def _batch_line(max_batch: int | None) -> str:
    if max_batch is None:
        return "measured when the model is loaded, but 1 for a large model on the CPU (img2img_batch_limit in /metrics)"
    return f"{max_batch} (IMG2IMG_MAX_BATCH is set)"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
