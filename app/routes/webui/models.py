"""What the web UI's API takes and answers with here."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from app.pixels import IMAGE_SIZE
from app.request import MAX_PROMPT_LENGTH, MAX_SEED, MAX_STEPS, smallest_strength

TURBO_STEPS = 4
"""What SDXL-Turbo was distilled for. Clients of the web UI default to 20, and to a scale of 7."""

SAMPLER_VALUE = "Of the sampler. No effect: the model's own is used, and another value is listed as clamped."


class WebUISampler(BaseModel):
    """What belongs to a sampler, with the values of the model's own."""

    scheduler: str = Field("automatic", description=SAMPLER_VALUE)
    eta: float = Field(1.0, description=SAMPLER_VALUE)
    s_churn: float = Field(0.0, description=SAMPLER_VALUE)
    s_tmin: float = Field(0.0, description=SAMPLER_VALUE)
    s_tmax: float = Field(0.0, description=SAMPLER_VALUE)
    s_noise: float = Field(1.0, description=SAMPLER_VALUE)


class WebUIFields(BaseModel):
    """The fields of `/sdapi/v1/img2img` that have an effect. Null is the same as absent."""

    init_images: list[str] = Field(min_length=1, max_length=1, description="A PNG, JPEG or WebP file as base64.")
    prompt: str = Field("", max_length=MAX_PROMPT_LENGTH, description="What the image should become.")
    negative_prompt: str = Field("", max_length=MAX_PROMPT_LENGTH, description="What to steer away from.")
    denoising_strength: float = Field(
        0.75, ge=smallest_strength(MAX_STEPS), le=1, description="How much of the image is redrawn."
    )
    steps: int = Field(
        TURBO_STEPS, ge=1, le=150, description="At most 4 are used, or as many as the strength needs for one UNet call."
    )
    cfg_scale: float = Field(0.0, ge=0, le=30, description="At most 1 is used, which is no guidance.")
    sampler_name: str | None = Field(
        None, description="No effect: the model's own is used, and another one is listed as clamped."
    )
    sampler_index: str | None = Field(None, description="No effect, as `sampler_name`.")
    seed: int = Field(-1, ge=-1, le=MAX_SEED, description="The same seed gives the same image; -1 is a random one.")
    batch_size: int = Field(1, ge=1, description="`batch_size` x `n_iter` images are made, at most 10.")
    n_iter: int = Field(1, ge=1, description="As `batch_size`.")
    resize_mode: Literal[0, 1, 2] = Field(0, description="0 is `stretch`, 1 is `crop`, 2 is `pad`.")
    send_images: bool = Field(True, description="Whether the answer holds the images.")
    width: Literal[IMAGE_SIZE] = Field(IMAGE_SIZE, description="Images have one size.")  # type: ignore[valid-type]
    height: Literal[IMAGE_SIZE] = Field(IMAGE_SIZE, description="Images have one size.")  # type: ignore[valid-type]
    override_settings: dict[str, Any] = Field(
        {}, description="`sd_model_checkpoint`: the model's name, or one of `IMG2IMG_MODEL_ALIASES`; else 404."
    )
    alwayson_scripts: dict[str, Any] = Field({}, description="Ignored if they are switched off, else refused.")


class WebUIAnswer(BaseModel):
    """Images."""

    images: list[str] = Field(description="Files as base64.")
    parameters: dict[str, Any] = Field(description="The fields, with the values that were taken.")
    info: str = Field(description="JSON in a text: seeds, infotexts, and what was clamped.")


class WebUIState(BaseModel):
    """The state of a request."""

    skipped: bool = False
    interrupted: bool
    job: str
    job_count: int
    job_timestamp: str = ""
    job_no: int = 0
    sampling_step: int
    sampling_steps: int


class WebUIProgress(BaseModel):
    """How far a request is."""

    progress: float = Field(description="0 to 1.")
    eta_relative: float = Field(description="Seconds that are left, by the pace so far.")
    state: WebUIState
    current_image: str | None = Field(description="A preview as base64.")
    textinfo: str | None = None


class WebUIPngInfoFields(BaseModel):
    """A file to read."""

    image: str = Field(description="The file as base64.")


class WebUIPngInfo(BaseModel):
    """What a file says of how it was made."""

    info: str
    items: dict[str, str]
    parameters: dict[str, str]


class WebUIOptions(BaseModel):
    """The settings that there are. None can be changed."""

    sd_model_checkpoint: str
    samples_format: Literal["png"] = "png"


class WebUIModel(BaseModel):
    """The model."""

    title: str
    model_name: str
    hash: str | None = None
    sha256: str | None = None
    filename: str
    config: str | None = None


class WebUISamplerInfo(BaseModel):
    """The sampler."""

    name: str
    aliases: list[str]
    options: dict[str, str] = {}


class WebUIError(BaseModel):
    """An error: clients show one of the fields or all."""

    error: str = Field(examples=["invalid_parameter"])
    detail: str = Field(description="What is wrong, and what to do.")
    body: str
    errors: str = Field(description="The same as `detail`.")
