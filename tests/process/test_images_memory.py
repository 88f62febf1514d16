"""Uploads decoded in a process with little memory left."""

import subprocess
import sys
from collections.abc import Callable

import pytest
from PIL import Image

from tests.support.images import (
    orientation,
    png,
    resized_jpeg,
    saved,
    webp_bomb,
)
from tests.support.paths import ROOT

CHILD = """
import resource, sys
from app.imaging.decode import decode_image
from app.errors import ServiceError
from app.pixels import Fit

data, room = sys.stdin.buffer.read(), int(sys.argv[1])
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + room * 1024**2,) * 2)
try:
    decode_image(data, Fit.STRETCH, 50_000_000)
    print("decoded")
except (ServiceError, MemoryError) as error:
    print(type(error).__name__)
"""


def decoded_within(megabytes: int, data: bytes) -> str:
    """What becomes of an upload in a process that may take only so much more memory."""
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(megabytes)]
    return subprocess.run(command, input=data, capture_output=True, check=True, cwd=ROOT).stdout.decode().strip()


limited = pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces RLIMIT_AS")


BOMBS: dict[str, Callable[[], bytes]] = {
    # Made in the test: its 324 MB of zeros take a second to compress.
    "PNG": lambda: png((9_000, 9_000), 8, 6, bytes(36_001 * 9_000)),
    "JPEG": lambda: resized_jpeg((9_000, 9_000)),
    "WebP extended": lambda: webp_bomb(b"VP8X", (3_100, 16_383)),
    "WebP lossless": lambda: webp_bomb(b"VP8L", (3_100, 16_383)),
    "WebP lossy": lambda: webp_bomb(b"VP8 ", (3_100, 16_383)),
}


@limited
@pytest.mark.parametrize("name", BOMBS)
def test_decompression_bomb_is_refused_in_32_mib(name: str) -> None:
    bomb = BOMBS[name]()
    assert len(bomb) < 500_000
    assert decoded_within(32, bomb) == "ImageTooLarge"


@limited
def test_large_jpeg_is_decoded_in_a_fraction_of_its_size() -> None:
    assert decoded_within(48, saved(Image.new("L", (7_000, 7_000), 100), "JPEG")) == "decoded"


@limited
@pytest.mark.parametrize("megabytes", [40, 200])
def test_too_little_memory_is_not_reported_as_a_bad_upload(megabytes: int) -> None:
    """40 MiB are too few to decode 144 MB of pixels; 200 are enough for that, but not for turning them."""
    data = saved(Image.new("RGB", (6_000, 6_000)), "PNG", exif=orientation(6), compress_level=1)
    assert decoded_within(megabytes, data) == "MemoryError"
