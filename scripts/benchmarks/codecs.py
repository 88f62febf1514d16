"""Encoding PNG and decoding JPEG: this project's code and Pillow's, on photographs."""

import io
import statistics
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial

import numpy as np
from PIL import Image
from skimage import data

from app.imaging.decode import decode_image
from app.imaging.encode import Marks, encode_image
from app.pixels import IMAGE_SIZE, Fit, OutputFormat, Pixels
from scripts.benchmarks.report import Goal, Outcome

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
ROUNDS = 15

RLE = 2
"""zlib's strategy `Z_RLE`, which looks for matches at distance one only."""

PILLOW: dict[str, dict[str, int]] = {
    "default": {},
    "level 1": {"compress_level": 1},
    "level 1 RLE": {"compress_level": 1, "compress_type": RLE},
}
"""Settings of Pillow's PNG encoder, slowest first."""


def photographs() -> dict[str, Image.Image]:
    """Images of 512 x 512 RGB pixels."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    return {name: Image.fromarray(getattr(data, name)()).convert("RGB").resize(size) for name in PHOTOGRAPHS}


def milliseconds(*calls: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    """The median time of each call; the calls alternate. The first round does not count."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds + 1):
        for call, kept in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            kept.append(1000 * (time.perf_counter() - start))
    return [statistics.median(kept[1:]) for kept in times]


def _ours(image: Image.Image, helper: Executor) -> bytes:
    return encode_image(Pixels(*image.size, image.tobytes()), OutputFormat.PNG, Marks(), helper)


def _pillow(image: Image.Image, settings: dict[str, int]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **settings)
    return buffer.getvalue()


def png() -> Outcome:
    """Encode PNG files of 512 x 512 pixels, with `app.imaging.png` and with settings of Pillow's encoder."""
    rows: list[tuple[str, str, float, int, float]] = []
    with ThreadPoolExecutor(1) as helper:
        for name, image in photographs().items():
            encoders = {
                "ours": partial(_ours, image, helper),
                **{f"Pillow, {which}": partial(_pillow, image, settings) for which, settings in PILLOW.items()},
            }
            times, sizes = milliseconds(*encoders.values()), [len(encode()) for encode in encoders.values()]
            rows += [
                (name, encoder, time_ms, size // 1024, sizes[0] / size)
                for encoder, time_ms, size in zip(encoders, times, sizes, strict=True)
            ]
    largest = {encoder: max(row[4] for row in rows if row[1] == encoder) for encoder in encoders}
    return Outcome(
        "png",
        "PNG of 512 x 512: ours on two threads, Pillow's on one",
        ("photograph", "encoder", "ms", "KiB", "size of ours / its size"),
        rows,
        [
            Goal("time", "slowest of ours, ms", max(row[2] for row in rows if row[1] == "ours"), at_most=6),
            *(
                Goal("count", f"largest of ours / {encoder}", ratio, at_most=1.15)
                for encoder, ratio in largest.items()
                if encoder != "ours"
            ),
        ],
    )


def decode() -> Outcome:
    """Decode JPEG files and resize them to 512 x 512 pixels."""
    rows, largest = [], 0.0
    for name in ("retina", "hubble_deep_field"):
        original = Image.fromarray(getattr(data, name)())
        for size in ((512, 512), (1024, 1024), (1411, 1411), (1412, 1412), (2048, 1536), (4032, 3024)):
            buffer = io.BytesIO()
            original.resize(size).save(buffer, "JPEG", quality=90)
            upload = buffer.getvalue()
            ours, pillow = partial(_decoded, upload), partial(_resized, upload)
            mine, theirs = milliseconds(ours, pillow)
            differs = _difference(ours(), pillow()), _difference(_resized(upload, Image.Resampling.LANCZOS), pillow())
            rows.append((f"{name}, {size[0]} x {size[1]}", mine, theirs, mine / theirs, *differs))
        largest = max(largest, mine)
    return Outcome(
        "decode",
        "JPEG to 512 x 512, one thread; differences are root mean squares in levels of 0 to 255",
        ("JPEG", "ours, ms", "Pillow's convert and resize, ms", "ratio", "ours to it", "Lanczos to it"),
        rows,
        [Goal("time", "12 megapixels, ms", largest, at_most=45)],
    )


def _decoded(upload: bytes) -> bytes:
    return decode_image(upload, Fit.STRETCH, 50_000_000).data


def _resized(upload: bytes, resample: Image.Resampling = Image.Resampling.BICUBIC) -> bytes:
    return Image.open(io.BytesIO(upload)).convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE), resample).tobytes()


def _difference(image: bytes, reference: bytes) -> float:
    return float(
        np.sqrt(((np.frombuffer(image, np.uint8).astype(float) - np.frombuffer(reference, np.uint8)) ** 2).mean())
    )
