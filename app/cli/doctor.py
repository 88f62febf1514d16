"""What `img2img doctor` says: the facts of this machine and of the model that it would run, and advice from them."""

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
from app.model import checkpoint, hub
from app.model.checkpoint import UNUSABLE
from app.model.compiled import ADVICE, has_compiler
from app.observability import otel_env
from app.settings import Settings, unknown_variables

ENOUGH_MEMORY = 16e9
"""Bytes; a full-size model in float32 takes 14 GB, and in float16 half of that while it is loaded."""

ENOUGH_DISK = 8e9
"""Bytes; SDXL-Turbo in float16 and its VAE are 7.1 GB."""

_MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_DRIVER_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What was found; sizes in bytes. `problems` are why the service would not start.

    `model` is `checkpoint.describe`'s, empty if one of the problems is why there is none.
    """

    vae_setting: str
    devices_setting: str
    compile_setting: str
    compiler: bool
    model: dict[str, str]
    problems: tuple[str, ...]
    unknown: tuple[str, ...]
    driver: str | None
    visible_devices: str | None
    cores: int
    memory: int
    cache: str
    cache_writable: bool
    cache_free: int

    @property
    def missing(self) -> str:
        """Why not all files are here; empty if they are."""
        _, _, reason = self.model.get("files", "").partition("not all here yet: ")
        return reason

    @property
    def embedded(self) -> bool:
        return self.model.get("model", "").startswith("embedded ")


def gather(settings: Settings) -> Facts:
    """Look at everything; loads no weights and fetches nothing."""
    model, problems = {}, list(_misconfigured(settings))
    try:
        model = checkpoint.describe(settings)
    except CheckpointError as error:
        problems.append(str(error))
    problems += filter(None, [model.get("files", "").partition(UNUSABLE)[2]])
    cache = settings.hub_cache or hub.default_cache()
    # It is made by the first download: until then, what counts is where it will be made. `os.path` takes what must not
    # be looked at for what is not there.
    existing = next(folder for folder in (cache.absolute(), *cache.absolute().parents) if os.path.exists(folder))  # noqa: PTH110
    return Facts(
        vae_setting=settings.vae,
        devices_setting=settings.devices,
        compile_setting=settings.compile,
        compiler=has_compiler(),
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
    """Why `img2img serve` would refuse to start; not that the port is taken, for that may be by a service."""
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
    """What `nvidia-smi` says of the GPUs and their driver; None if the program is not there."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DRIVER_SECONDS, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi failed: {error}"
    said = "; ".join((done.stdout or done.stderr).split("\n")).strip("; ")
    return said if done.returncode == 0 else f"nvidia-smi failed: {said}"


def memory(limits: Iterable[Path]) -> int:
    """Bytes of memory that this process may use: the machine's, or a container's limit in one of the files."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    texts = [path.read_text().strip() for path in limits if path.is_file()]
    return min([machine, *(int(text) for text in texts if text.isdecimal())])


def advise(facts: Facts) -> list[str]:
    """What would fail or be slow, and what to do; in the order of weight."""
    advice = [*facts.problems, *facts.unknown]
    if not facts.model.get("device", "cpu").startswith("cuda"):
        advice.append(_why_no_cuda(facts))
    if facts.model:
        advice += _about_speed(facts)
        advice += _about_files(facts)
    return advice


def _why_no_cuda(facts: Facts) -> str:
    if facts.visible_devices in ("", "none", "void"):
        return "NVIDIA_VISIBLE_DEVICES hides every GPU from this container: start it with --gpus all."
    if facts.driver is None:
        return "There is no NVIDIA driver here (no nvidia-smi): images can be made on the CPU only."
    if facts.devices_setting.startswith("cpu"):
        return "IMG2IMG_DEVICES names the CPU, though there is an NVIDIA driver: auto takes the GPU."
    if facts.model.get("CUDA build") == "none":
        return "There is an NVIDIA driver, but this torch is built without CUDA: install its CUDA build."
    return "There is an NVIDIA driver, but torch finds no GPU: the driver may be too old, or the GPU hidden or broken."


def _about_speed(facts: Facts) -> Iterator[str]:
    model = facts.model
    cuda, dtype = model["device"].startswith("cuda"), model["dtype"]
    if facts.embedded:
        yield "The embedded model is small and draws icons only: IMG2IMG_MODEL=stabilityai/sdxl-turbo draws anything."
    elif not cuda:
        yield "A full-size model takes a minute and more for each picture on the CPU: use a CUDA GPU."
    if not facts.embedded and facts.memory < ENOUGH_MEMORY:
        yield f"{_gb(facts.memory)} of memory may be too little to load a full-size model: 16 GB is enough."
    if cuda and dtype == "float32":
        yield "float32 on CUDA takes twice the memory and time of float16: set IMG2IMG_DTYPE=auto."
    if cuda and dtype == "float16" and facts.vae_setting == "checkpoint":
        yield "SDXL's own VAE has to run in float32, which is slow: set IMG2IMG_VAE=auto for one that needs not."
    if cuda and facts.compile_setting == "off":
        yield "IMG2IMG_COMPILE=default replays CUDA graphs: the start takes longer, and a picture perhaps less."
    if facts.compile_setting != "off" and not facts.compiler:
        yield f"IMG2IMG_COMPILE={facts.compile_setting} needs a C++ compiler, and there is none. {ADVICE}"
    if not cuda and facts.compile_setting != "off":
        yield "IMG2IMG_COMPILE gains little on the CPU: off is best there."
    if not cuda and dtype == "float16":
        yield "float16 on the CPU is slow and may overflow: set IMG2IMG_DTYPE=auto."


def _about_files(facts: Facts) -> Iterator[str]:
    if "img2img download" not in facts.missing:
        # Nothing is missing, or it is not on the hub either.
        yield from filter(None, [facts.missing])
        return
    yield "The first start downloads the model; `img2img download` does it ahead of that."
    if not facts.cache_writable:
        yield f"{facts.cache} cannot be written to: set IMG2IMG_HUB_CACHE to a folder that can."
    if facts.cache_free < ENOUGH_DISK:
        yield f"{_gb(facts.cache_free)} are free for {facts.cache}, and SDXL-Turbo takes 7: make room."


def render(facts: Facts, advice: list[str]) -> str:
    """The report for people: a line for each fact, then the advice."""
    lines = {
        **facts.model,
        "driver": facts.driver or "none (no nvidia-smi)",
        "NVIDIA_VISIBLE_DEVICES": facts.visible_devices or "not set",
        "CPU cores": str(facts.cores),
        "memory": _gb(facts.memory),
        "cache": f"{facts.cache}, {_gb(facts.cache_free)} free" + ("" if facts.cache_writable else ", read-only"),
    }
    width = max(map(len, lines))
    table = [f"{name:<{width}}  {value}" for name, value in lines.items()]
    return "\n".join([*table, "", *(f"- {sentence}" for sentence in advice or ["All is well."])])


def as_dict(facts: Facts, advice: list[str]) -> dict[str, Any]:
    """The same for programs."""
    return {**asdict(facts), "advice": advice}


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
