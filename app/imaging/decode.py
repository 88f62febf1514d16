"""Bytes to RGB pixels: limits, orientation, fit.

Everything here is synchronous and takes milliseconds to seconds of one core: call it in a process of its own. Pillow's
process-wide settings are read but never changed.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

from PIL import ExifTags, Image, ImageOps

from app.errors import ImageTooLarge, InvalidImage, ServiceError
from app.imaging.formats import Size, check_scans, recognise, webp_size
from app.pixels import IMAGE_SIZE, Fit, Pixels

_log = logging.getLogger(__name__)

_SQUARE = (IMAGE_SIZE, IMAGE_SIZE)


def decode_image(data: bytes, fit: Fit, max_pixels: int) -> Pixels:
    """Turn an uploaded file into an image of 512x512 RGB pixels, `uint8[512, 512, 3]`.

    PNG, JPEG (multi-picture JPEG too) and WebP are read, recognised by content; of an animation the first frame.
    EXIF orientation is applied unless the EXIF cannot be read. Every mode becomes RGB by one rule: 16-bit samples
    count by their high byte; transparency of any kind (alpha channel, palette, transparent colour) is laid onto white;
    the rest is Pillow's `convert("RGB")`. An embedded colour profile is ignored.

    For an opaque image of 8-bit samples, `stretch` gives exactly the pixels of
    `diffusers.utils.load_image(...).resize((512, 512))`; a JPEG of 1024 pixels or more on both sides, both even, only
    comes close.

    Args:
        data: the bytes of the whole file; only a PNG may lack its end mark. Damage that a decoder conceals, as a
            flipped bit in a JPEG's scan, goes unnoticed.
        fit: `stretch` resizes both sides; `crop` takes the largest centred square; `pad` centres all of it on white.
            All resample bicubically.
        max_pixels: limit of width x height, compared with the header before anything is allocated or decoded.
            `PIL.Image.MAX_IMAGE_PIXELS` applies too, if that is lower.

    Raises:
        InvalidImage: the data is empty, truncated or corrupt.
        ImageTooLarge: the header announces more pixels than allowed.
        UnsupportedImageFormat: the data is in none of the three formats.
    """
    file_format, limit = recognise(data), _limit(max_pixels)
    if file_format == "JPEG":
        check_scans(data)
    with _readable(file_format, limit):
        rgb = _square(_read(data, file_format, limit), fit)
    return Pixels(IMAGE_SIZE, IMAGE_SIZE, rgb.tobytes())


@contextmanager
def _readable(file_format: str, limit: int) -> Iterator[None]:
    """Turn each exception of reading a file into one of our own errors, except `MemoryError`."""
    try:
        yield
    except (ServiceError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Above Pillow's own limit, and so above ours; the process's warning filters decide which of the two it is.
        raise _too_large(f"over {(Image.MAX_IMAGE_PIXELS or 0) / 1e6:.1f} megapixels", limit) from error
    except Exception as error:
        if "MAX_TEXT_" in str(error):
            message = "The image's metadata is larger than a megabyte when it is unpacked. Save it without metadata."
            raise InvalidImage(message, param="image") from error
        # Pillow has no common base for what hostile data makes it raise: AssertionError, KeyError, zlib.error, ...
        message = f"The image is a truncated or corrupt {file_format} file. Send the whole, unchanged file."
        raise InvalidImage(message, param="image") from error


def _limit(max_pixels: int) -> int:
    return min(max_pixels, Image.MAX_IMAGE_PIXELS or max_pixels)


def _check_size(size: Size, limit: int) -> None:
    width, height = size
    if width * height > limit:
        # Rounded up, so that an image just above the limit does not read as equal to it.
        megapixels = -(-width * height // 100_000) / 10
        raise _too_large(f"{megapixels} megapixels ({width} x {height})", limit)


def _too_large(what: str, limit: int) -> ImageTooLarge:
    message = f"The image is {what}; the limit is {limit / 1e6:g} megapixels. Send a smaller image."
    return ImageTooLarge(message, param="image")


def _read(data: bytes, file_format: str, limit: int) -> Image.Image:
    """The upright RGB image. Raises our own errors, and any of Pillow."""
    image = _open(data, file_format, limit)
    if file_format == "JPEG":
        image.draft("RGB", _reduced(image.size))
    image.load()
    _turn_upright(image)
    return _to_rgb(image)


def _open(data: bytes, file_format: str, limit: int) -> Image.Image:
    """The opened image, with its size checked."""
    if file_format == "WEBP":
        # Pillow allocates a WebP's canvas, twice, when it opens the file.
        _check_size(webp_size(data), limit)
    image = Image.open(BytesIO(data), formats=(file_format,))
    _check_size(image.size, limit)
    return image


def _reduced(size: Size) -> Size:
    """The size at which a JPEG is decoded: a half, a quarter or an eighth where that still covers the square.

    That is several times faster, and about as far from the full decode as Lanczos is from bicubic, but only where both
    sides are divisible: else the last column stands for a part of a pixel, and everything is shifted towards it.
    `scripts/bench --case decode` measures both.
    """
    scales = (scale for scale in (8, 4, 2) if min(size) // scale >= IMAGE_SIZE and not any(n % scale for n in size))
    scale = next(scales, 1)
    return size[0] // scale, size[1] // scale


def _turn_upright(image: Image.Image) -> None:
    try:
        # In place, the image is turned before Pillow rewrites its EXIF, which may fail on tags that do not matter here.
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception as error:
        _log.debug("an upload's EXIF could not be read: %s", type(error).__name__)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I;16":
        image = _high_bytes(image)
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgba = image.convert("RGBA")
    canvas = Image.new("RGB", rgba.size, "white")
    canvas.paste(rgba, mask=rgba)
    return canvas


def _high_bytes(image: Image.Image) -> Image.Image:
    """16-bit greyscale as 8-bit: Pillow's own conversion turns all above 255 of 65535 white."""
    grey = Image.frombytes("L", image.size, image.tobytes()[1::2])
    if "transparency" in image.info:
        grey.info["transparency"] = image.info["transparency"] >> 8
    return grey


def _square(rgb: Image.Image, fit: Fit) -> Image.Image:
    if rgb.size == _SQUARE:
        return rgb
    if fit is Fit.CROP:
        return ImageOps.fit(rgb, _SQUARE)
    return _pad(rgb) if fit is Fit.PAD else rgb.resize(_SQUARE)


def _pad(rgb: Image.Image) -> Image.Image:
    """`ImageOps.pad` on white, but an image thinner than 1:1024 keeps one pixel instead of vanishing."""
    width, height = (max(1, round(side / max(rgb.size) * IMAGE_SIZE)) for side in rgb.size)
    canvas = Image.new("RGB", _SQUARE, "white")
    canvas.paste(rgb.resize((width, height)), (round((IMAGE_SIZE - width) / 2), round((IMAGE_SIZE - height) / 2)))
    return canvas


def read_parameters(data: bytes, max_pixels: int) -> str:
    """The generation parameters in a file, where `encode_image` writes them; empty if there are none.

    Raises:
        InvalidImage, ImageTooLarge, UnsupportedImageFormat: as `decode_image`; damage in its pixels alone may
            go unnoticed.
    """
    file_format, limit = recognise(data), _limit(max_pixels)
    with _readable(file_format, limit):
        image = _open(data, file_format, limit)
        if file_format == "PNG":
            # Text may stand behind the pixels.
            image.load()
            return str(image.info.get("parameters", ""))
        comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
    return _comment(comment)


def _comment(comment: object) -> str:
    """A `UserComment` as text, by its 8-byte character code."""
    if not isinstance(comment, bytes):
        return ""
    code, text = comment[:8], comment[8:]
    encoding = "utf-16-be" if code.startswith(b"UNICODE") else "utf-8"
    return text.decode(encoding, errors="replace").strip("\0")
