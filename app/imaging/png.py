"""RGB pixels to the bytes of a PNG file, without loss.

By default Pillow tries all five filters on each row and searches long for deflate's matches. Here each row is filtered
by the one above it (filter Up, by Pillow's arithmetic) and deflated by Intel's ISA-L, the lower half of the image on a
second thread. `scripts/bench --case png` compares it with Pillow's default and its fast settings (`compress_level=1`).
"""

import struct
from collections.abc import Iterable
from concurrent.futures import Executor

from isal import isal_zlib
from PIL import Image, ImageChops
from PIL.PngImagePlugin import PngInfo

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EIGHT_BIT_RGB = (8, 2, 0, 0, 0)
"""Bit depth, colour type, compression, filter method, interlace: the end of IHDR (W3C PNG, section 11.2.1)."""
_UP = 2
_LEVEL = 1
"""ISA-L's levels 2 and 3 take longer and compress no better."""

_ZLIB_HEADER = b"\x78\x01"
_BARE = -15
"""Deflate's widest window (RFC 1951), without zlib's header and checksum (RFC 1950): there is one of each for both."""


def encode(width: int, height: int, rgb: bytes, text: PngInfo, helper: Executor) -> bytes:
    """A PNG file.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels; at least 2.
        rgb: `uint8[height, width, 3]`, row by row without padding.
        text: the text chunks, which stand before the pixels.
        helper: deflates the lower half; must not be the executor that this runs on.
    """
    row = 3 * width
    middle = height // 2 * row
    padded = memoryview(bytes(row) + rgb)
    below = helper.submit(_deflated, padded[middle:], row, isal_zlib.Z_FINISH)
    # A full flush ends on a whole byte and resets the window: the lower half can be deflated by itself.
    upper, first = _deflated(padded[: middle + row], row, isal_zlib.Z_FULL_FLUSH)
    lower, second = below.result()
    checksum = isal_zlib.adler32(lower, isal_zlib.adler32(upper))
    return b"".join(
        [
            _SIGNATURE,
            *_chunk(b"IHDR", struct.pack(">II", width, height) + bytes(_EIGHT_BIT_RGB)),
            *(part for name, data, *_ in text.chunks for part in _chunk(name, data)),
            *_chunk(b"IDAT", b"".join([_ZLIB_HEADER, first, second, struct.pack(">I", checksum)])),
            *_chunk(b"IEND", b""),
        ]
    )


def _deflated(data: memoryview, row: int, flush: int) -> tuple[bytes, bytes]:
    """Filter and deflate all rows but the first; `row` is the bytes of one. Returns the filtered and the deflated."""
    filtered = _filtered(data, row)
    deflate = isal_zlib.compressobj(_LEVEL, wbits=_BARE)
    return filtered, deflate.compress(filtered) + deflate.flush(flush)


def _filtered(data: memoryview, row: int) -> bytes:
    """All rows but the first, each with the filter's number before it and minus the row above. A row has `row` bytes.

    A PNG filter works on bytes, not on pixels, and so do images of one channel, which Pillow need not repack.
    """
    size = (row, len(data) // row - 1)
    shifted = (data[row:], data[:-row])
    # Pillow takes any buffer, though its annotations say bytes.
    rows, above = (Image.frombuffer("L", size, part, "raw", "L", 0, 1) for part in shifted)  # type: ignore[arg-type]
    filtered = Image.new("L", (1 + row, size[1]), _UP)
    filtered.paste(ImageChops.subtract_modulo(rows, above), (1, 0))
    return filtered.tobytes()


def _chunk(name: bytes, data: bytes) -> Iterable[bytes]:
    """Length, name, data and checksum of a chunk."""
    return struct.pack(">I", len(data)), name, data, struct.pack(">I", isal_zlib.crc32(data, isal_zlib.crc32(name)))
