"""Images as raw pixels, and the options for reading and writing them. Imports no library."""

from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Pixels:
    """An RGB image: `data` is `uint8[height, width, 3]`, row by row without padding."""

    width: int
    height: int
    data: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.data) != self.width * self.height * 3:
            raise ValueError(f"{len(self.data)} bytes are not {self.width} x {self.height} RGB pixels")


IMAGE_SIZE = 512
"""Width and height of every result, in pixels: what SDXL-Turbo was trained for."""


class Fit(StrEnum):
    """How an image of another shape becomes a square."""

    STRETCH = "stretch"
    CROP = "crop"
    PAD = "pad"


class OutputFormat(StrEnum):
    """The file formats of results."""

    PNG = "png"
    WEBP = "webp"
    JPEG = "jpeg"

    @property
    def media_type(self) -> str:
        return f"image/{self.value}"
