"""Images that are small to send and huge to decode: each gets its status, and none takes much memory."""

import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from scripts.resilience.target import Target
from tests.support.hostile import unharmed
from tests.support.http import post, problem
from tests.support.images import (
    chunk,
    many_scans,
    saved,
)
from tests.support.images import png as raw_png


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with unharmed(tmp_path_factory.mktemp("target")) as target:
        yield target


def flat(size: tuple[int, int], colour: int = 2) -> bytes:
    """A PNG of one colour that is made without holding its pixels."""
    width, height = size
    packer = zlib.compressobj(9)
    row = b"\0" + bytes(width * {2: 3, 6: 4}[colour])
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def empty_webp(size: tuple[int, int]) -> bytes:
    return saved(Image.new("RGB", size), "WEBP", lossless=True, method=0)


def packed_chunk(kind: bytes) -> bytes:
    """A PNG of one pixel with a chunk of 80 MB of zeros, compressed."""
    return raw_png((1, 1), 8, 2, bytes(4), chunk(kind, b"a\0\0" + zlib.compress(bytes(80_000_000))))


BOMBS: dict[str, tuple[Callable[[], bytes], int]] = {
    "a JPEG of thousands of scans": (lambda: many_scans(3_000), 422),
    "a PNG of 84 megapixels": (lambda: flat((9_200, 9_200)), 413),
    "a PNG of 20000 x 20000": (lambda: flat((20_000, 20_000))[:100_000], 413),
    "a JPEG of 84 megapixels": (lambda: saved(Image.new("L", (9_200, 9_200)), "JPEG"), 413),
    "a WebP of 84 megapixels in 3 KB": (lambda: empty_webp((9_200, 9_200)), 413),
    "a PNG of 49 megapixels": (lambda: flat((7_000, 7_000)), 200),
    "a PNG of 49 megapixels with alpha": (lambda: flat((7_000, 7_000), 6), 200),
    "a WebP of 49 megapixels": (lambda: empty_webp((7_000, 7_000)), 200),
    "a text chunk that unpacks to 80 MB": (lambda: packed_chunk(b"zTXt"), 422),
    "a profile that unpacks to 80 MB": (lambda: packed_chunk(b"iCCP"), 422),
}
"""Each is made by the first test that asks for it: all of them take ten seconds."""


@cache
def bomb(name: str) -> bytes:
    make, _ = BOMBS[name]
    return make()


@pytest.mark.parametrize("name", BOMBS)
def test_each_huge_image_gets_its_status(target: Target, name: str) -> None:
    status = BOMBS[name][1]
    answer = post(target.url, bomb(name))
    assert answer.status_code == status, answer.content[:300]
    if status == 200:
        assert Image.open(io.BytesIO(answer.content)).size == (512, 512)
    else:
        assert problem(answer, status, answer.json()["code"], "image")


def test_huge_images_take_bounded_memory_in_each_process(target: Target) -> None:
    def most(pid: int) -> int:
        (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(line) * 1024

    for name in BOMBS:
        post(target.url, bomb(name))
    # The upload, its parts, and a picture or two; never its pixels.
    assert most(target.process.pid) < 250e6
    for pid in target.children("app.imaging.decoder_process"):
        assert most(pid) < 900e6
