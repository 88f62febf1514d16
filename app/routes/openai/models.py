"""What OpenAI's images API takes and answers with here."""

from typing import Annotated, Literal

from annotated_types import Ge, Le
from pydantic import BaseModel, Field

from app.pixels import IMAGE_SIZE, OutputFormat
from app.request import MAX_PROMPT_LENGTH
from app.web.openapi import NO_EFFECT


class EditFields(BaseModel):
    """Fields of a form in addition to those of `/img2img`."""

    image: bytes = Field(description="One PNG, JPEG or WebP file. SDKs call it `image[]` or `image[0]`, too.")
    model: str | None = Field(None, description="The model's name, or one of `IMG2IMG_MODEL_ALIASES`; else 404.")
    n: int = Field(1, ge=1, le=10, description="Number of images, with consecutive seeds.")
    size: Literal["auto", f"{IMAGE_SIZE}x{IMAGE_SIZE}"] = Field(  # type: ignore[valid-type]
        "auto", description="Images have one size."
    )
    background: Literal["auto", "opaque"] = Field("auto", description="Images are opaque.")
    response_format: Literal["b64_json", "url"] = Field(
        "b64_json", description="Base64, or a data: URL; a stream has base64 only."
    )
    output_compression: int = Field(
        100, ge=0, le=100, description="Quality of a WebP or JPEG file; a PNG has 100 only."
    )
    stream: Literal["false", "true"] = Field(
        "false", description="Whether the response is a stream of events; with `n=1` only."
    )
    partial_images: int = Field(0, ge=0, le=3, description="Number of previews in a stream.")


class Hints(BaseModel):
    """Fields that change nothing here."""

    user: str | None = Field(None, description=NO_EFFECT)
    quality: str | None = Field(None, description=NO_EFFECT)
    input_fidelity: str | None = Field(None, description=NO_EFFECT)
    moderation: str | None = Field(None, description=NO_EFFECT)


class OutputFields(BaseModel):
    """Fields of `/img2img` that have another default here."""

    output_format: OutputFormat = Field(OutputFormat.PNG, description="`png`, `webp` or `jpeg`.")


class OptionalPrompt(BaseModel):
    """The prompt of a variation."""

    prompt: str = Field("", max_length=MAX_PROMPT_LENGTH, description="What the image should become.")


class OpenAITokenDetails(BaseModel):
    """Always 0: nothing is counted in tokens here."""

    image_tokens: int = 0
    text_tokens: int = 0


class OpenAIUsage(BaseModel):
    """Always 0: nothing is counted in tokens here, and the SDK's type has no other word for that."""

    input_tokens: int = 0
    input_tokens_details: OpenAITokenDetails = OpenAITokenDetails()
    output_tokens: int = 0
    total_tokens: int = 0


class OpenAIImage(BaseModel):
    """One image, by `response_format` as base64 or as a URL."""

    b64_json: str | None = Field(None, description="The file as base64.")
    url: str | None = Field(None, description="A data: URL that holds the file.")
    seed: int = Field(description="The seed that makes the image again.")


class ImageFacts(BaseModel):
    """What the images of one answer have in common."""

    background: Literal["opaque"] = "opaque"
    output_format: OutputFormat
    quality: Literal["auto"] = "auto"
    size: str = Field(examples=[f"{IMAGE_SIZE}x{IMAGE_SIZE}"])


class OpenAIImages(ImageFacts):
    """The answer."""

    created: int = Field(description="Seconds of Unix time.")
    data: list[OpenAIImage]
    usage: OpenAIUsage = OpenAIUsage()


class OpenAIPartialImage(ImageFacts):
    """The event of a preview."""

    type: Literal["image_edit.partial_image"] = "image_edit.partial_image"
    created_at: int = Field(description="Seconds of Unix time.")
    b64_json: str
    partial_image_index: Annotated[int, Ge(0), Le(2)]


class OpenAICompleted(ImageFacts):
    """The last event of a stream."""

    type: Literal["image_edit.completed"] = "image_edit.completed"
    created_at: int = Field(description="Seconds of Unix time.")
    b64_json: str
    seed: int
    tokens_cut: int = Field(description="How many tokens of the prompt were not read.")
    usage: OpenAIUsage = OpenAIUsage()


class OpenAIModel(BaseModel):
    """A model."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="When the service started, in seconds of Unix time.")
    owned_by: str = "img2img"


class OpenAIModelList(BaseModel):
    """The models: there is one."""

    object: Literal["list"] = "list"
    data: list[OpenAIModel]


class OpenAIErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = Field(description="The field at fault, if one is.")
    code: str = Field(examples=["invalid_parameter"])


class OpenAIError(BaseModel):
    """An error."""

    error: OpenAIErrorDetail
