"""Coverage-guided fuzzing of the code that reads clients' bytes: image files and JSON bodies.

    python -m scripts.resilience.fuzz {images,json} SECONDS FOLDER

FOLDER keeps the corpus, from which the next run goes on, and inputs that caused a fault. Exits with 0 if none did.
"""

import random
import sys
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["app", "PIL"]):
    from PIL import Image

    from app.errors import ServiceError
    from app.imaging.decode import decode_image
    from app.pixels import Fit
    from app.request import parse_request
    from app.routes.img2img import parse_hugging_face
    from app.web.json_body import parse_json

_FITS = tuple(Fit)
_PIXELS = 1_000_000
"""The pixel limit, so that each image takes milliseconds."""


def image_file(data: bytes) -> None:
    """Decode a file. It must become pixels or be refused; any other exception is a fault."""
    with suppress(ServiceError):
        decode_image(data, _FITS[len(data) % len(_FITS)], _PIXELS)


def json_body(data: bytes) -> None:
    """Parse a body. It must become an image and a request, or be refused."""
    with suppress(ServiceError):
        _, fields = parse_hugging_face(parse_json(data))
        parse_request({"prompt": "", **fields})


def seed_images(folder: Path) -> None:
    """The initial corpus: one file of each format and mode."""
    noise = Image.frombytes("RGB", (9, 7), random.Random(0).randbytes(9 * 7 * 3))
    for mode in ("RGB", "L", "RGBA", "P", "1", "I;16", "CMYK"):
        for file_format in ("PNG", "JPEG", "WEBP", "MPO"):
            buffer = BytesIO()
            try:
                noise.convert(mode).save(buffer, file_format)
            except (OSError, ValueError, KeyError):
                continue
            (folder / f"{file_format}-{mode.replace(';', '')}").write_bytes(buffer.getvalue())


def seed_json(folder: Path) -> None:
    """The initial corpus: bodies that clients send."""
    for number, text in enumerate(
        (
            '{"inputs": "iVBORw0KGgo="}',
            '{"inputs": "data:image/png;base64,iVBORw0KGgo=", "parameters": {"prompt": "dog", "seed": 1}}',
            '{"inputs": "", "parameters": {"strength": 0.5, "guidance_scale": 1e9, "num_inference_steps": 4, '
            '"fit": "pad", "output_format": "webp", "negative_prompt": null, '
            '"target_size": {"width": 512, "height": 512}}}',
        )
    ):
        (folder / str(number)).write_text(text)


def main() -> None:
    """Run the fuzzer. Never returns: libFuzzer ends the process."""
    what, seconds, name = sys.argv[1:]
    folder = Path(name)
    folder.mkdir(parents=True, exist_ok=True)
    target, seed = {"images": (image_file, seed_images), "json": (json_body, seed_json)}[what]
    seed(folder)
    # Limits of libFuzzer: decoding takes a fraction of a second, within the memory of a decoder process.
    options = [f"-max_total_time={int(seconds)}", "-timeout=20", "-rss_limit_mb=2048", "-max_len=4096"]
    atheris.Setup([sys.argv[0], f"-artifact_prefix={folder}/fault-", *options, str(folder)], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
