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
