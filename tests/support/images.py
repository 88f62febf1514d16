"""Pictures and picture files for the tests of images, honest and hostile."""

import random
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from PIL import ExifTags, Image

from app.imaging.decode import decode_image
from app.pixels import Fit

Size = tuple[int, int]
LIMIT = 50_000_000
"""Pixels that an upload may have."""


def noise(size: Size, mode: str = "RGB", seed: int = 0) -> Image.Image:
    data = random.Random(seed).randbytes(size[0] * size[1] * len(mode))
    return Image.frombytes(mode, size, data)


def saved(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data))


def decoded(data: bytes, fit: Fit = Fit.STRETCH, max_pixels: int = LIMIT) -> Image.Image:
    pixels = decode_image(data, fit, max_pixels)
    assert (pixels.width, pixels.height) == (512, 512)
    return Image.frombytes("RGB", (512, 512), pixels.data)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(size: Size, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def webp(kind: bytes, body: bytes) -> bytes:
    riff = b"WEBP" + kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(riff)) + riff


def webp_bomb(kind: bytes, size: Size) -> bytes:
    width, height = size[0] - 1, size[1] - 1
    if kind == b"VP8X":
        return webp(kind, bytes(4) + width.to_bytes(3, "little") + height.to_bytes(3, "little"))
    if kind == b"VP8L":
        return webp(kind, b"\x2f" + (width | height << 14).to_bytes(4, "little") + bytes(11))
    return webp(kind, b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", *size) + bytes(20))


def resized_jpeg(size: Size) -> bytes:
    """A small JPEG whose header lies about its size."""
    data = bytearray(saved(Image.new("RGB", (16, 16)), "JPEG"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", size[1], size[0])
    return bytes(data)


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = value
    return exif


MAKERS: dict[str, Callable[[Image.Image], bytes]] = {
    "png": lambda image: saved(image, "PNG"),
    "jpeg": lambda image: saved(image, "JPEG", quality=90),
    "progressive": lambda image: saved(image, "JPEG", progressive=True),
    "webp": lambda image: saved(image, "WEBP"),
    "lossless": lambda image: saved(image, "WEBP", lossless=True),
    "extended": lambda image: saved(image, "WEBP", exif=orientation(1)),
}
every_format = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def many_scans(count: int) -> bytes:
    """A progressive JPEG, its last scan so many times more: each costs its reader a pass over all pixels."""
    whole = saved(noise((24, 24)), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[last:-2] * count + whole[-2:]


SMALL = noise((24, 24))
FILES = {"PNG": saved(SMALL, "PNG"), "JPEG": saved(SMALL, "JPEG"), "WebP": saved(SMALL, "WEBP", lossless=True)}


def in_mode(mode: str, colour: Any) -> Image.Image:
    return Image.new(mode, (4, 4), colour)


def paletted(colour: tuple[int, int, int]) -> Image.Image:
    image = in_mode("P", 1)
    image.putpalette([9, 9, 9, *colour])
    return image


GREY = (100, 100, 100)
DEEP_GREY = png((2, 2), 16, 0, 2 * (b"\0" + 2 * b"\x64\xff"))

MODES = {
    "1": (saved(in_mode("1", 1), "PNG"), (255, 255, 255)),
    "L": (saved(in_mode("L", 100), "PNG"), GREY),
    "L, transparent colour": (saved(in_mode("L", 100), "PNG", transparency=100), (255, 255, 255)),
    "L, another transparent colour": (saved(in_mode("L", 100), "PNG", transparency=9), GREY),
    "LA": (saved(in_mode("LA", (0, 155)), "PNG"), GREY),
    "P": (saved(paletted((1, 2, 3)), "PNG"), (1, 2, 3)),
    "P, transparent entry": (saved(paletted((1, 2, 3)), "PNG", transparency=1), (255, 255, 255)),
    "P, half transparent entry": (saved(paletted((0, 0, 255)), "PNG", transparency=bytes([255, 155])), (100, 100, 255)),
    "RGB": (saved(in_mode("RGB", (1, 2, 3)), "PNG"), (1, 2, 3)),
    "RGB, transparent colour": (saved(in_mode("RGB", (1, 2, 3)), "PNG", transparency=(1, 2, 3)), (255, 255, 255)),
    "RGBA": (saved(in_mode("RGBA", (0, 0, 255, 155)), "PNG"), (100, 100, 255)),
    "16-bit greyscale": (DEEP_GREY, GREY),
    "16-bit greyscale, transparent colour": (
        png((2, 2), 16, 0, 2 * (b"\0" + 2 * b"\x64\xff"), chunk(b"tRNS", b"\x64\xff")),
        (255, 255, 255),
    ),
    "16-bit greyscale and alpha": (png((1, 1), 16, 4, b"\0" + b"\0\0\x9b\xff"), GREY),
    "16-bit RGB": (png((2, 1), 16, 2, b"\0" + 2 * b"\1\xff\2\xff\3\xff"), (1, 2, 3)),
    "CMYK": (saved(in_mode("CMYK", (255, 0, 0, 0)), "JPEG"), (0, 255, 255)),
    "WebP with alpha": (saved(in_mode("RGBA", (0, 0, 255, 155)), "WEBP", lossless=True), (100, 100, 255)),
}
