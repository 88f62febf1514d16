"""Every setting: its name, type, bounds, default and description.

Each is read from the environment variable `IMG2IMG_<NAME>` when `Settings()` is called.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, AliasChoices, Discriminator, Field, SecretStr, Tag
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

MaxBatch = Annotated[
    Annotated[int, Field(ge=1, le=64), Tag("number")] | Annotated[Literal["auto"], Tag("word")],
    # Otherwise an invalid value would be reported once for each of the two types.
    Discriminator(lambda value: "word" if value == "auto" else "number"),
]


_PREFIX = "IMG2IMG_"
_ROUTE = r"^(/[A-Za-z0-9._~/:-]*)?$"
_ORIGIN = re.compile(r"https?://([^\s,/*A-Z]+)", re.ASCII)


def _origins(value: str) -> str:
    if value and not all(map(_ORIGIN.fullmatch, value.split(","))):
        raise PydanticCustomError(
            "origins",
            "must name each origin as browsers write it, like https://example.org: in lower case, without a path, "
            "and no *; separated by commas",
        )
    return value


def _each_once(value: str) -> str:
    gpus = ["cuda:0" if device == "cuda" else device for device in value.split(",") if device.startswith("cuda")]
    if len(set(gpus)) < len(gpus):
        raise PydanticCustomError("devices", "must name each GPU once: two workers would compete for its memory")
    return value


_OF_CLIENTS = ("API_KEY", "URL")


def unknown_variables(environment: Iterable[str]) -> Iterator[str]:
    """A sentence for each variable that has the prefix of the settings but is not one."""
    known = {*(name.upper() for name in Settings.model_fields), *_OF_CLIENTS}
    for name in sorted(name for name in environment if name.startswith(_PREFIX)):
        if (word := name.removeprefix(_PREFIX)) not in known:
            close = difflib.get_close_matches(word, known, n=1)
            meant = f": is {_PREFIX}{close[0]} meant?" if close else "."
            yield f"{name} is not a setting, and has no effect{meant}"


class WorkerSettings(BaseSettings):
    """The settings that a worker process reads. It gets these and no others, so no API key among them."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        # Compose files and shells set a variable to an empty text to leave it unset.
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        protected_namespaces=(),
    )

    model: str = Field(
        "auto",
        min_length=1,
        description="`auto` (`stabilityai/sdxl-turbo` where there is a CUDA device, else `embedded`), `embedded`, "
        "a folder in diffusers format, or a hub id, also as `id@revision`.",
    )
    vae: str = Field(
        "auto",
        min_length=1,
        description="`auto` (on CUDA in float16 `madebyollin/sdxl-vae-fp16-fix` where the checkpoint's own must run in "
        "float32, else `checkpoint`), `checkpoint`, `tiny` (TAESDXL: faster, coarser), a folder or a hub id.",
    )
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = Field(
        "auto",
        description="`auto` is float16 on CUDA. On the CPU it is float32, but for a large model bfloat16 where a short "
        "measurement at the start finds that faster.",
    )
    offline: bool = Field(False, description="Never contact the model hub: fail if the files are not there.")
    hub_cache: Path | None = Field(
        None, description="The folder for downloaded weights; by default the hub client's own cache (`HF_HOME`)."
    )
    max_batch: MaxBatch = Field(
        "auto",
        description="`auto` (1, 2 or 4, measured at start; 1 for a large model on the CPU) or a number from 1 to 64: "
        "the jobs on a device that share a UNet call.",
    )
    compile: Literal["off", "default", "max"] = Field(
        "off",
        description="`default` compiles the model before it is ready; `max` tries more kernels and takes longer. Both "
        "need g++ or clang. For the CPU, `off` is best.",
    )
    compile_cache: Path | None = Field(
        None, description="The folder that keeps compiled code for the next start; by default a temporary one."
    )
    cuda_graphs: bool = Field(
        True,
        description="On CUDA, record each part of the model as a CUDA graph before it is ready: the processor no "
        "longer limits the GPU. Takes about 1 GB of its memory.",
    )
    fp16_accumulation: bool = Field(
        False,
        description="On CUDA, accumulate float16 products in float16: it may be faster on GPUs of the A10G's class, "
        "and is less exact.",
    )
    cache_bytes: int = Field(
        128 * 1024**2,
        ge=0,
        description="Bytes on each device that cache encoded prompts (0.3 MB each) and images.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least severe level that is logged."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="`json` (one JSON object a line), `console`, or `auto`: JSON unless stderr is a terminal."
    )


class Settings(WorkerSettings):
    """The service's settings. Raises pydantic's `ValidationError`, naming the variable, for a value out of bounds."""

    devices: Annotated[str, AfterValidator(_each_once)] = Field(
        "auto",
        pattern=r"^(auto|(cpu|cuda(:\d+)?)(,(cpu|cuda(:\d+)?))*)$",
        description="`auto` (the first CUDA device, or the CPU where there is no GPU) or a list like `cuda:0,cuda:1`: "
        "one worker for each.",
    )
    host: str = Field("127.0.0.1", description="The address that `img2img serve` listens on.")
    port: int = Field(
        8000,
        ge=0,
        le=65535,
        validation_alias=AliasChoices("IMG2IMG_PORT", "AIP_HTTP_PORT", "PORT"),
        description="The port that it listens on; `PORT` and Vertex AI's `AIP_HTTP_PORT` are read too.",
    )
    health_route: str = Field(
        "",
        pattern=_ROUTE,
        validation_alias=AliasChoices("IMG2IMG_HEALTH_ROUTE", "AIP_HEALTH_ROUTE"),
        description="One more path, like `/healthz`, that answers as `/health/ready`. Vertex AI sets it by "
        "`AIP_HEALTH_ROUTE`.",
    )
    predict_route: str = Field(
        "",
        pattern=_ROUTE,
        validation_alias=AliasChoices("IMG2IMG_PREDICT_ROUTE", "AIP_PREDICT_ROUTE"),
        description="A path, like `/predict`, that takes Vertex AI's `instances`. Vertex AI sets it by "
        "`AIP_PREDICT_ROUTE`.",
    )
    model_aliases: str = Field(
        "",
        description="Other model names that requests may use, like `gpt-image-1`, separated by commas; `*` allows any.",
    )
    api_keys: SecretStr = Field(
        SecretStr(""),
        description="API keys, separated by commas. If any is set, all routes except health require one.",
    )
    api_keys_file: Path | None = Field(
        None, description="A file with one API key on each line; it is read again when it changes."
    )
    cors_origins: Annotated[str, AfterValidator(_origins)] = Field(
        "",
        description="Origins of web pages that may use the service from a browser, like `https://example.org`, "
        "separated by commas; the service's own origin always may.",
    )
    queue_size: int = Field(64, ge=1, le=10_000, description="Requests that may wait or run; further ones are refused.")
    deadline_seconds: float = Field(
        120.0,
        gt=0,
        le=3600,
        description="Time of a request from arrival to result; one that cannot meet it is refused.",
    )
    tick_timeout_seconds: float = Field(
        180.0,
        ge=0.1,
        le=3600,
        description="A worker that is silent for so long while it has jobs is killed and replaced; after 30 s already "
        "if that is 20 times its normal time.",
    )
    load_timeout_seconds: float = Field(
        3600.0, ge=0.1, description="The same, while a worker downloads and loads the model."
    )
    max_worker_deaths: int = Field(
        5,
        ge=1,
        description="Deaths of workers in a row, without a finished image, after which the service exits.",
    )
    idle_unload_seconds: float = Field(
        0.0,
        ge=0,
        description="A worker that is idle for so long is ended, which frees its memory; the next request starts it "
        "again. 0: never.",
    )
    drain_delay_seconds: float = Field(
        0.0,
        ge=0,
        le=3600,
        description="After SIGTERM, the service refuses requests with 503 for so long before it closes: time for a "
        "load balancer to remove it.",
    )
    drain_seconds: float = Field(30.0, gt=0, le=3600, description="Time for running requests to finish after SIGTERM.")
    max_body_bytes: int = Field(20 * 1024**2, ge=1024, description="Largest request body; a larger one gets 413.")
    body_timeout_seconds: float = Field(
        15.0, gt=0, le=3600, description="Time for a request body to arrive; a slower one gets 408."
    )
    max_image_pixels: int = Field(
        50_000_000,
        ge=1,
        le=1_000_000_000,
        description="Largest upload in pixels, by its header; a larger one gets 413. "
        "Pillow has a limit of 89 million too.",
    )
    mark_pictures: bool = Field(
        True, description="Write into each image that it was made with generative AI (IPTC `DigitalSourceType`)."
    )
    embed_parameters: bool = Field(
        True, description="Write prompt, seed and steps into the image's metadata, as image tools expect them."
    )
    c2pa_certificate: Path | None = Field(
        None,
        description="A PEM file with a certificate and its issuers: it signs each image (C2PA). "
        "Needs the extra `c2pa`.",
    )
    c2pa_key: Path | None = Field(None, description="A PEM file with the certificate's private key, not encrypted.")

    def for_worker(self) -> WorkerSettings:
        """The part that a worker process reads."""
        return WorkerSettings.model_construct(**self.model_dump(include=set(WorkerSettings.model_fields)))
