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
_UP = 2
_LEVEL = 1
"""ISA-L's levels 2 and 3 take longer and find nothing more."""


def encode(width: int, height: int, rgb: bytes, text: PngInfo) -> bytes:
    """A PNG file.

    Args:
        width: of the picture.
        height: likewise.
        rgb: `uint8[height, width, 3]`, row by row without padding.
        text: what is to stand in front of the pixels, already in the form of chunks.
    """
    return b"".join(
        [
            _SIGNATURE,
            *_chunk(b"IHDR", struct.pack(">II", width, height) + bytes(_EIGHT_BIT_RGB)),
            *(part for name, data, *_ in text.chunks for part in _chunk(name, data)),
            *_chunk(b"IDAT", isal_zlib.compress(_filtered(3 * width, height, rgb), level=_LEVEL)),
            *_chunk(b"IEND", b""),
        ]
    )


def _filtered(width: int, height: int, data: bytes) -> bytes:
    """Rows of so many bytes, each with its filter's number in front and less the row above; above the first are zeros.

    A filter knows bytes, not pixels, and so do pictures of one channel, which Pillow need not repack.
    """
    rows = Image.frombuffer("L", (width, height), data, "raw", "L", 0, 1)
    above = Image.new("L", rows.size)
    above.paste(rows, (0, 1))
    filtered = Image.new("L", (1 + width, height), _UP)
    filtered.paste(ImageChops.subtract_modulo(rows, above), (1, 0))
    return filtered.tobytes()


def _chunk(name: bytes, data: bytes) -> Iterable[bytes]:
    """Length, name, data and checksum of a chunk."""
    return struct.pack(">I", len(data)), name, data, struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))
