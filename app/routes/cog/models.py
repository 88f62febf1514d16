"""What Cog's API takes and answers with."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from app.pixels import OutputFormat
from app.request import MAX_PROMPT_LENGTH
from app.web.openapi import NO_EFFECT

ID = r"[A-Za-z0-9_.-]{1,128}"


class CogBody(BaseModel):
    """A prediction to make."""

    input: dict[str, Any] = Field(description="The image and the fields.")
    id: str | None = Field(
        None, pattern=f"^{ID}$", description="Names the prediction: two requests with one id at once get the same."
    )


class CogHints(BaseModel):
    """Fields that a proxy adds, and that change nothing here."""

    created_at: Any = Field(None, description=NO_EFFECT)
    started_at: Any = Field(None, description=NO_EFFECT)
    context: Any = Field(None, description=NO_EFFECT)
    version: Any = Field(None, description=NO_EFFECT)
    status: Any = Field(None, description=NO_EFFECT)
    logs: Any = Field(None, description=NO_EFFECT)
    urls: Any = Field(None, description=NO_EFFECT)


class CogInput(BaseModel):
    """Fields of `input` in addition to those of `/img2img`, and those with another default."""

    image: str = Field(description="A PNG, JPEG or WebP file as a data: URL or as base64.")
    prompt: str = Field("", max_length=MAX_PROMPT_LENGTH, description="What the image should become.")
    output_format: OutputFormat = Field(OutputFormat.PNG, description="`png`, `webp` or `jpeg`.")


class CogMetrics(BaseModel):
    """Times."""

    predict_time: float = Field(description="Seconds.")


class CogTimes(BaseModel):
    """The times of a prediction; a cancelled one has none."""

    created_at: str | None = None
    started_at: str | None = None
    completed_at: str | None = None
    metrics: CogMetrics | None = None


class CogPrediction(CogTimes):
    """A prediction that has ended. A failed or cancelled one has no `output`."""

    id: str
    status: Literal["succeeded", "failed", "canceled"]
    output: str | None = Field(None, description="A data: URL that holds the file.")
    error: str | None = Field(None, description="Why it failed.")
    logs: str = ""


class CogSetup(BaseModel):
    """The start of the service."""

    started_at: str
    status: Literal["starting", "succeeded"]
    logs: str = ""


class CogHealth(BaseModel):
    """The state of the service."""

    status: Literal["READY", "STARTING", "DEFUNCT"]
    setup: CogSetup
    version: dict[str, str]


class CogInputError(BaseModel):
    """A field of the input that cannot be used."""

    loc: list[str]
    msg: str
    type: str


class CogError(BaseModel):
    """An error: a list of what is wrong with the input, or a sentence."""

    detail: str | list[CogInputError]
