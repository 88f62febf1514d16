"""The parameters of one edit, and the steps x strength rule."""

import difflib
import math
import re
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from app.errors import InvalidParameter
from app.field_errors import invalid_field
from app.pixels import Fit, OutputFormat

MAX_STEPS = 50
MAX_SEED = 2**63 - 1
MAX_PROMPT_LENGTH = 10_000

_INTEGER = re.compile(r"-?[0-9]+", re.ASCII)
_NUMBER = re.compile(r"-?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)


def _integer(value: Any) -> int:
    """A whole number, or a text of decimal digits; `4.0`, `4_0`, ` 4 ` and True are refused."""
    if isinstance(value, str) and len(value) <= 1000 and _INTEGER.fullmatch(value):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise PydanticCustomError("integer", "a whole number, like 4")


def _number(value: Any) -> float:
    """A number, or a text in decimal notation; `nan`, `inf`, `1_0` and True are refused."""
    if isinstance(value, str) and len(value) <= 64 and _NUMBER.fullmatch(value):
        return float(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        # An integer may be too large for a float.
        with suppress(OverflowError):
            if math.isfinite(value):
                return float(value)
    raise PydanticCustomError("number", "a finite decimal number, like 0.9")


Integer = Annotated[int, BeforeValidator(_integer)]
Number = Annotated[float, BeforeValidator(_number)]


def steps_run(num_inference_steps: int, strength: float) -> int:
    """UNet evaluations that diffusers makes: the same float64 expression as in its `get_timesteps`."""
    return min(int(num_inference_steps * strength), num_inference_steps)


def unet_rows(num_inference_steps: int, strength: float, guidance_scale: float) -> int:
    """Rows of UNet batches that an image costs: classifier-free guidance runs a second one at each step."""
    return steps_run(num_inference_steps, strength) * (2 if guidance_scale > 1 else 1)


class Img2ImgRequest(BaseModel):
    """The parameters of one edit, from any dialect.

    Raises pydantic's `ValidationError`, which `parse_request` turns into `InvalidParameter`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = Field(
        max_length=MAX_PROMPT_LENGTH,
        description="What the image should become. CLIP reads its first 77 tokens.",
        examples=["dog wizard, gandalf, lord of the rings, detailed, fantasy, cute, adorable, Pixar, Disney, 8k"],
    )
    negative_prompt: str | None = Field(
        None,
        max_length=MAX_PROMPT_LENGTH,
        description="What to avoid; has an effect only with `guidance_scale` above 1.",
    )
    num_inference_steps: Integer = Field(
        4, ge=1, le=MAX_STEPS, description="Steps of the whole schedule; `int(steps * strength)` of them run."
    )
    strength: Number = Field(0.9, gt=0, le=1, description="How much of the image is redrawn: 1 keeps nothing of it.")
    guidance_scale: Number = Field(
        0.0, ge=0, le=20, description="Classifier-free guidance. SDXL-Turbo wants 0; above 1 doubles the work."
    )
    seed: Integer | None = Field(
        None, ge=0, le=MAX_SEED, description="The same seed gives the same image. Random if absent."
    )
    fit: Fit = Field(
        Fit.STRETCH, description="How the image becomes 512x512: `stretch`, `crop` (centre) or `pad` (white)."
    )
    output_format: OutputFormat | None = Field(
        None, description="`png`, `webp` or `jpeg`; the `Accept` header decides if absent."
    )
    quality: Integer | None = Field(
        None, ge=1, le=100, description="Quality of a WebP or JPEG file; 90 or 92 if absent. A PNG has none."
    )

    @property
    def steps_run(self) -> int:
        """UNet evaluations of this request, at least 1."""
        return steps_run(self.num_inference_steps, self.strength)

    @property
    def unet_rows(self) -> int:
        """Rows of UNet batches that this request costs."""
        return unet_rows(self.num_inference_steps, self.strength, self.guidance_scale)

    @model_validator(mode="after")
    def _at_least_one_step(self) -> "Img2ImgRequest":
        if self.steps_run < 1:
            raise PydanticCustomError("too_few_steps", "{advice}", {"advice": _advice(self)})
        return self


def _advice(request: Img2ImgRequest) -> str:
    """Names the smallest strength for these steps and the smallest steps for this strength."""
    steps, strength = request.num_inference_steps, request.strength
    enough = smallest_steps(strength)
    return (
        f"num_inference_steps x strength must be at least 1, but {steps} x {strength:g} would run no step: "
        f"for {steps} step{'s' if steps > 1 else ''} send a strength of at least {smallest_strength(steps):g}, "
        + (
            f"or for strength {strength:g} at least {enough} steps."
            if enough
            else f"since even the maximum of {MAX_STEPS} steps is too few for strength {strength:g}."
        )
    )


def smallest_strength(num_inference_steps: int) -> float:
    """The smallest strength of at most four decimals that runs a step: 0.25 for 4, 0.3334 for 3."""
    candidate = 10_000 // num_inference_steps
    while steps_run(num_inference_steps, candidate / 10_000) < 1:
        candidate += 1
    return candidate / 10_000


def smallest_steps(strength: float) -> int | None:
    """The fewest steps that run at least one at this strength; None if even `MAX_STEPS` are too few."""
    return next((steps for steps in range(1, MAX_STEPS + 1) if steps_run(steps, strength) >= 1), None)


def parse_request(
    fields: Mapping[str, Any], other_names: Iterable[str] = (), names: Mapping[str, str] | None = None
) -> Img2ImgRequest:
    """A request from fields, as text (forms, queries) or JSON values.

    Args:
        fields: by the names of `Img2ImgRequest`.
        other_names: further fields of the dialect; a misspelled name is compared with them too.
        names: what the dialect calls fields that have another name here; errors say that.

    Raises:
        InvalidParameter: names the first field at fault and what it may be.
    """
    unknown = sorted(set(fields) - set(Img2ImgRequest.model_fields))
    if unknown:
        # Shortened first: the search for similar names is slow for long ones.
        name = unknown[0][:64]
        raise InvalidParameter(_unknown_field(name, (*Img2ImgRequest.model_fields, *other_names)), param=name)
    try:
        return Img2ImgRequest.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "too_few_steps":
            raise InvalidParameter(first["msg"], param="strength") from None
        field = str(first["loc"][0])
        name = (names or {}).get(field, field)
        raise InvalidParameter(invalid_field(name, first), param=name) from None


def with_consecutive_seeds(request: Img2ImgRequest, count: int) -> tuple[Img2ImgRequest, ...]:
    """`count` requests with consecutive seeds, from the request's own seed or a random one."""
    first = random_seed() if request.seed is None else request.seed
    return tuple(request.model_copy(update={"seed": (first + i) % (MAX_SEED + 1)}) for i in range(count))


def random_seed() -> int:
    """A seed below 2^32: other tools take no larger ones."""
    return secrets.randbelow(2**32)


def _unknown_field(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else f". Known fields: {', '.join(known)}."
    return f"There is no field '{name}'{hint}"
