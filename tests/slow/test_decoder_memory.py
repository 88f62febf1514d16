"""What a decoder may hold."""

import asyncio

from app.imaging.decoder_pool import DecoderPool
from app.pixels import Fit, Pixels
from tests.support.images import LIMIT, chunk, orientation, png


def test_largest_image_with_alpha_and_orientation_fits_into_a_decoder() -> None:
    """With transparency and turned, so that as many copies are made as there can be."""
    side = 7000
    exif = bytes(orientation(6).tobytes()).removeprefix(b"Exif\0\0")
    rows = (b"\0" + b"\x10\x20\x30\x40" * side) * side
    deaths: list[int] = []

    async def decode() -> Pixels:
        pool = DecoderPool(LIMIT, 1, lambda: deaths.append(1))
        await pool.start()
        try:
            return await pool.decode(png((side, side), 8, 6, rows, chunk(b"eXIf", exif)), Fit.PAD)
        finally:
            pool.close()

    assert asyncio.run(decode())
    assert deaths == []
