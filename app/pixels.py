"""Images as raw pixels, and the words for how they come in and go out: no library is imported for them."""

from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Pixels:
    """An RGB picture: `data` is `uint8[height, width, 3]`, row by row without padding."""

    width: int
    height: int
    data: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.data) != self.width * self.height * 3:
            raise ValueError(f"{len(self.data)} bytes are not {self.width} x {self.height} RGB pixels")


IMAGE_SIZE = 512
"""Width and height of every picture that leaves, in pixels: what SDXL-Turbo was made for."""


class Fit(StrEnum):
    """How a picture of another shape becomes a square."""

    STRETCH = "stretch"
    CROP = "crop"
    PAD = "pad"


class OutputFormat(StrEnum):
    """The file formats that can be asked for."""

    PNG = "png"
    WEBP = "webp"
    JPEG = "jpeg"

    @property
    def media_type(self) -> str:
        return f"image/{self.value}"
