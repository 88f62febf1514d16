"""Images as raw pixels, and the options for reading and writing them. Imports no library."""

from enum import StrEnum
from typing import NamedTuple, Self


class _Pixels(NamedTuple):
    width: int
    height: int
    data: bytes


class Pixels(_Pixels):
    """An RGB image: `data` is `uint8[height, width, 3]`, row by row without padding.

    A named tuple and no dataclass: those import `inspect`, which takes 1.8 MB in each decoder process.

    Raises:
        ValueError: `data` has another length.
    """

    __slots__ = ()

    def __new__(cls, width: int, height: int, data: bytes) -> Self:
        if len(data) != width * height * 3:
            raise ValueError(f"{len(data)} bytes are not {width} x {height} RGB pixels")
        return super().__new__(cls, width, height, data)

    def __repr__(self) -> str:
        return f"Pixels({self.width}, {self.height})"


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
