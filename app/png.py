"""RGB pixels to the bytes of a PNG file, without loss.

Pillow tries all five filters on each row and searches deflate's matches long; that takes most of 100 ms. Here each row
is filtered by the one above it (filter Up, by Pillow's arithmetic) and deflated by Intel's ISA-L: `scripts/bench --case
png` measures both.
"""

import struct
import zlib
from collections.abc import Iterable

from isal import isal_zlib
from PIL import Image, ImageChops
from PIL.PngImagePlugin import PngInfo

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EIGHT_BIT_RGB = (8, 2, 0, 0, 0)
"""Bit depth, colour type, compression, filter method, interlace: the end of IHDR (W3C PNG, section 11.2.1)."""
_UP = b"\x02"
_LEVEL = 1
"""ISA-L's levels 2 and 3 take longer and find nothing more."""


def encode(image: Image.Image, text: PngInfo) -> bytes:
    """A PNG file.

    Args:
        image: in mode RGB.
        text: what is to stand in front of the pixels, already in the form of chunks.
    """
    size = struct.pack(">II", *image.size)
    return b"".join(
        [
            _SIGNATURE,
            *_chunk(b"IHDR", size + bytes(_EIGHT_BIT_RGB)),
            *(part for name, data, *_ in text.chunks for part in _chunk(name, data)),
            *_chunk(b"IDAT", isal_zlib.compress(_filtered(image), level=_LEVEL)),
            *_chunk(b"IEND", b""),
        ]
    )


def _filtered(image: Image.Image) -> bytes:
    """The rows, each with its filter's number in front and less the row above; above the first are zeros."""
    above = Image.new("RGB", image.size)
    above.paste(image, (0, 1))
    data = ImageChops.subtract_modulo(image, above).tobytes()
    width = 3 * image.width
    return b"".join([_UP + data[start : start + width] for start in range(0, len(data), width)])


def _chunk(name: bytes, data: bytes) -> Iterable[bytes]:
    """Length, name, data and checksum of a chunk."""
    return struct.pack(">I", len(data)), name, data, struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))
