"""Which uploads are refused, with which sentence, and that no upload costs memory or gets any other answer."""

import warnings
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app.errors import ImageTooLarge, InvalidImage, ServiceError, UnsupportedImageFormat
from app.imaging.decode import decode_image
from app.pixels import Fit, Pixels
from tests.support.images import (
    LIMIT,
    MAKERS,
    Size,
    chunk,
    decoded,
    every_format,
    many_scans,
    noise,
    png,
    resized_jpeg,
    saved,
    webp_bomb,
)


def refusal(error: type[ServiceError], data: bytes, max_pixels: int = LIMIT) -> str:
    with pytest.raises(error) as caught:
        decode_image(data, Fit.STRETCH, max_pixels)
    assert caught.value.param == "image"
    return caught.value.message


def answer(data: bytes) -> Pixels | None:
    """The picture, or None if it is refused in one of the three ways; anything else fails the test."""
    try:
        return decode_image(data, Fit.STRETCH, LIMIT)
    except (InvalidImage, ImageTooLarge, UnsupportedImageFormat):
        return None


@every_format
def test_truncated_file_is_refused_unless_its_pixels_are_complete(make: Callable[[Image.Image], bytes]) -> None:
    data = make(noise((67, 45)))
    whole = decode_image(data, Fit.STRETCH, LIMIT)
    for end in [*range(0, len(data), len(data) // 40), *range(len(data) - 24, len(data))]:
        assert answer(data[:end]) in (None, whole)
    assert answer(data[: len(data) // 2]) is None


def test_truncated_file_is_refused_with_422_and_its_format() -> None:
    data = saved(noise((50, 50)), "JPEG")
    assert refusal(InvalidImage, data[:-200]) == (
        "The image is a truncated or corrupt JPEG file. Send the whole, unchanged file."
    )


def test_png_without_its_end_mark_is_read() -> None:
    assert decoded(saved(noise((50, 50)), "PNG")[:-12]) == noise((50, 50)).resize((512, 512))


def test_jpeg_with_many_scans_is_refused_but_not_with_a_film() -> None:
    whole = many_scans(0)
    assert "scans" in refusal(InvalidImage, many_scans(100))
    assert decoded(whole + b"\xff\xda" * 100).tobytes() == decoded(whole).tobytes()


@pytest.mark.parametrize("marker", [b"\xff\x01", b"\xff\xd8", b"\xff\xd0"], ids=["TEM", "SOI", "RST"])
def test_scans_behind_a_marker_without_length_are_counted(marker: bytes) -> None:
    data = many_scans(100)
    first = data.rindex(b"\xff\xda", 0, len(data) // 2)
    length = (len(data) - first).to_bytes(2, "big")
    assert "scans" in refusal(InvalidImage, data[:first] + marker + length + data[first:])


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt"])
def test_too_large_metadata_is_named_in_the_error(name: bytes) -> None:
    body = b"note\0" + (b"\0" if name == b"zTXt" else b"\1\0\0\0") + zlib.compress(bytes(2 * 2**20))
    assert "metadata" in refusal(InvalidImage, png((4, 4), 8, 2, bytes(52), chunk(name, body)))


def test_empty_upload_is_refused() -> None:
    assert "empty" in refusal(InvalidImage, b"")


@pytest.mark.parametrize("start", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\4\0\0\0WEBP", b"RIFF\4\0\0\0WEBPVP9 "])
def test_beginning_of_an_image_alone_is_refused_as_corrupt(start: bytes) -> None:
    refusal(InvalidImage, start)
    refusal(InvalidImage, start + bytes(64))


@pytest.mark.parametrize(
    "data",
    [
        png((4, 4), 8, 2, bytes(52), chunk(b"tEXt", b"transparency\0x")),
        png((4, 4), 8, 2, bytes(52), chunk(b"tEXt", b"bbox\0abcd")),
        png((4, 4), 8, 3, bytes(20)),
        png((0, 4), 8, 2, bytes(20)),
        png((4, 4), 7, 2, bytes(20)),
        webp_bomb(b"VP8X", (64, 64)),
    ],
    ids=["transparency text", "bbox text", "no palette", "no width", "7 bits", "no frame"],
)
def test_file_that_confuses_the_decoder_is_refused_as_corrupt(data: bytes) -> None:
    refusal(InvalidImage, data)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\xff\0\0\0WEBPVP8"]), st.binary(max_size=200))
def test_random_bytes_give_an_image_or_a_refusal(start: bytes, rest: bytes) -> None:
    answer(start + rest)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([make(noise((9, 7))) for make in MAKERS.values()]),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damaged_file_gives_an_image_or_a_refusal(data: bytes, damage: list[tuple[int, int]]) -> None:
    damaged = bytearray(data)
    for place, value in damage:
        damaged[place % len(data)] = value
    answer(bytes(damaged))


def heic(brand: bytes) -> bytes:
    return b"\0\0\0\x18ftyp" + brand + bytes(4) + b"mif1heic"


OTHERS = {
    "GIF": saved(noise((9, 9)), "GIF"),
    "BMP": saved(noise((9, 9)), "BMP"),
    "TIFF": saved(noise((9, 9)), "TIFF"),
    "AVIF": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf",
    "HEIC": heic(b"heic"),
    "video": heic(b"isom"),
    "JPEG XL": b"\xff\x0a\xfa\x1f",
    "JPEG 2000": saved(noise((9, 9)), "JPEG2000"),
    "icon": saved(noise((16, 16)), "ICO"),
    "Photoshop": b"8BPS\0\1",
    "PDF": saved(noise((9, 9)), "PDF"),
    "SVG": b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "HTML": b"\n<!doctype html><title>Not found</title>",
    "base64": b"iVBORw0KGgoAAAANSUhEUgAA",
    "in no format known here": b"\x89PN",
}


@pytest.mark.parametrize(("name", "data"), OTHERS.items(), ids=OTHERS)
def test_other_format_is_refused_by_name_with_advice(name: str, data: bytes) -> None:
    message = refusal(UnsupportedImageFormat, data)
    assert name in message
    assert message.endswith("Convert it to PNG, JPEG or WebP.")


@every_format
def test_image_at_the_limit_is_read_and_one_pixel_more_is_not(
    make: Callable[[Image.Image], bytes],
) -> None:
    data = make(noise((30, 40)))
    assert decoded(data, max_pixels=1201) == decoded(data, max_pixels=1200)
    refusal(ImageTooLarge, data, max_pixels=1199)


def test_refusal_of_a_large_image_states_size_and_limit() -> None:
    assert refusal(ImageTooLarge, resized_jpeg((12_000, 7_000))) == (
        "The image is 84.0 megapixels (12000 x 7000); the limit is 50 megapixels. Send a smaller image."
    )
    assert "is 50.1 megapixels" in refusal(ImageTooLarge, png((50_000_001, 1), 8, 2, b""))


@pytest.mark.parametrize("action", ["error", "ignore"])
@pytest.mark.parametrize("size", [(10_000, 9_999), (20_000, 20_000)])
def test_limit_of_pillow_holds_as_warning_and_as_error(action: Any, size: Size) -> None:
    for data in (png(size, 8, 2, b""), resized_jpeg(size)):
        with warnings.catch_warnings():
            warnings.simplefilter(action)
            message = refusal(ImageTooLarge, data, max_pixels=10**9)
        assert "the limit is 89.4785 megapixels" in message
