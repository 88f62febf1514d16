"""Bytes to RGB pixels (limits, orientation, fit); pixels to PNG, WebP or JPEG bytes (with provenance).

Everything here is synchronous and takes milliseconds to seconds of one core: call it on a thread. Pillow's process-wide
settings are read but never changed. Only raw pixels lie between the two halves, so nothing of an upload's metadata,
text or colour profile can come out again.
"""

import logging
import struct
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

from PIL import ExifTags, Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from app import png
from app.engine.jobs import Pixels
from app.errors import ImageTooLarge, InvalidImage, ServiceError
from app.formats import Size, check_scans, recognise, webp_size
from app.request import IMAGE_SIZE, Fit, OutputFormat

_log = logging.getLogger(__name__)

_SQUARE = (IMAGE_SIZE, IMAGE_SIZE)

_QUALITY = {OutputFormat.WEBP: 90, OutputFormat.JPEG: 92}
_PREVIEW_QUALITY = 80
_COMMENT_AS_BYTES, _COMMENT = (struct.pack(">HH", ExifTags.Base.UserComment, kind) for kind in (1, 7))
"""The first half of an entry in an EXIF directory: its tag, and the type of its value."""

_MAX_JPEG_EXIF = 65_533
"""Bytes that fit into a JPEG marker segment."""

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
"""IPTC's term for a picture that is composed of others and of what generative AI made."""

_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="{DIGITAL_SOURCE_TYPE}"/>'
    '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
).encode()


def decode(data: bytes, fit: Fit, max_pixels: int) -> Pixels:
    """Turn an uploaded file into a picture of 512x512 RGB pixels, `uint8[512, 512, 3]`.

    PNG, JPEG (a multi-picture JPEG too) and WebP are read, told apart by content; of an animation the first frame.
    EXIF orientation is applied unless the EXIF cannot be read. Every mode becomes RGB by one rule: 16-bit samples
    count by their high byte; transparency of any kind (alpha channel, palette, transparent colour) is laid onto white;
    the rest is Pillow's `convert("RGB")`. An embedded colour profile is ignored.

    For an opaque picture of 8-bit samples, `stretch` gives exactly the pixels of
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
    with _told(file_format, limit):
        rgb = _square(_read(data, file_format, limit), fit)
    return Pixels(IMAGE_SIZE, IMAGE_SIZE, rgb.tobytes())


@contextmanager
def _told(file_format: str, limit: int) -> Iterator[None]:
    """Whatever reading a file raises becomes one of our own errors, but for too little memory."""
    try:
        yield
    except (ServiceError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Above Pillow's own limit, and so above ours; whether that comes as a warning is up to the process's filters.
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
        # Rounded up, so that a picture just above the limit does not read as equal to it.
        megapixels = -(-width * height // 100_000) / 10
        raise _too_large(f"{megapixels} megapixels ({width} x {height})", limit)


def _too_large(what: str, limit: int) -> ImageTooLarge:
    message = f"The image is {what}; the limit is {limit / 1e6:g} megapixels. Send a smaller picture."
    return ImageTooLarge(message, param="image")


def _read(data: bytes, file_format: str, limit: int) -> Image.Image:
    """The upright RGB picture; besides our own errors raises whatever Pillow raises."""
    image = _open(data, file_format, limit)
    if file_format == "JPEG":
        image.draft("RGB", _reduced(image.size))
    image.load()
    _turn_upright(image)
    return _to_rgb(image)


def _open(data: bytes, file_format: str, limit: int) -> Image.Image:
    """The picture as its header has it."""
    if file_format == "WEBP":
        # Pillow allocates a WebP's canvas, twice, when it opens the file.
        _check_size(webp_size(data), limit)
    image = Image.open(BytesIO(data), formats=(file_format,))
    _check_size(image.size, limit)
    return image


def _reduced(size: Size) -> Size:
    """What a JPEG of a size is decoded at: a half, a quarter or an eighth of it where that still covers the square.

    That is several times faster, and about as far from the full decode as Lanczos is from bicubic, but only where both
    sides are divisible: else the last column stands for a part of a pixel, and everything is shifted towards it.
    `scripts/bench --case decode` measures both.
    """
    scales = (scale for scale in (8, 4, 2) if min(size) // scale >= IMAGE_SIZE and not any(n % scale for n in size))
    scale = next(scales, 1)
    return size[0] // scale, size[1] // scale


def _turn_upright(image: Image.Image) -> None:
    try:
        # In place, the picture is turned before Pillow rewrites its EXIF, which may fail on tags of no interest here.
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
    """`ImageOps.pad` on white, but a picture thinner than 1:1024 keeps one pixel instead of vanishing."""
    width, height = (max(1, round(side / max(rgb.size) * IMAGE_SIZE)) for side in rgb.size)
    canvas = Image.new("RGB", _SQUARE, "white")
    canvas.paste(rgb.resize((width, height)), (round((IMAGE_SIZE - width) / 2), round((IMAGE_SIZE - height) / 2)))
    return canvas


@dataclass(frozen=True, slots=True)
class Marks:
    """What is written into a file beside the picture.

    Attributes:
        parameters: an `infotext`, where image tools look for it: PNG text `parameters`, EXIF `UserComment` in the
            others. A JPEG has no room for more than about 32,000 characters: it then goes without.
        generated: whether its XMP says that it was made with generative AI (IPTC `DigitalSourceType`).
    """

    parameters: str | None = None
    generated: bool = True

    @property
    def xmp(self) -> bytes:
        """An XMP packet, or nothing."""
        return _XMP if self.generated else b""


def encode(
    pixels: Pixels, output_format: OutputFormat, marks: Marks, helper: Executor, quality: int | None = None
) -> bytes:
    """Write a picture as a file: PNG without loss, WebP at quality 90, JPEG at quality 92, or at another one.

    Args:
        pixels: the picture.
        output_format: the file format.
        marks: what is written beside it.
        helper: does half of a PNG's work; not the executor that this runs on.
        quality: 1 to 100, of a WebP or JPEG.
    """
    if output_format is OutputFormat.PNG:
        return png.encode(pixels.width, pixels.height, pixels.data, _png_text(marks), helper)
    image = Image.frombytes("RGB", (pixels.width, pixels.height), pixels.data)
    exif = _exif(marks.parameters)
    too_long = output_format is OutputFormat.JPEG and len(exif) > _MAX_JPEG_EXIF
    buffer = BytesIO()
    quality = quality or _QUALITY[output_format]
    image.save(buffer, output_format.value, quality=quality, xmp=marks.xmp, exif=b"" if too_long else exif)
    return buffer.getvalue()


def parameters(data: bytes, max_pixels: int) -> str:
    """What a file says of how it was made, where `encode` writes it; an empty text if it says nothing.

    Raises:
        InvalidImage, ImageTooLarge, UnsupportedImageFormat: as `decode`, but for what only its pixels would show.
    """
    file_format, limit = recognise(data), _limit(max_pixels)
    with _told(file_format, limit):
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


def enlarged(pixels: Pixels, output_format: OutputFormat, marks: Marks) -> bytes:
    """A preview as a file of 512x512; of its marks, that it was generated."""
    small = Image.frombytes("RGB", (pixels.width, pixels.height), pixels.data)
    buffer = BytesIO()
    marks = Marks(generated=marks.generated)
    told = {"pnginfo": _png_text(marks)} if output_format is OutputFormat.PNG else {"xmp": marks.xmp}
    small.resize(_SQUARE).save(buffer, output_format.value, quality=_PREVIEW_QUALITY, **told)
    return buffer.getvalue()


def _png_text(marks: Marks) -> PngInfo:
    """As iTXt, since a tEXt chunk holds Latin-1 only."""
    text = PngInfo()
    if marks.generated:
        text.add_itxt("XML:com.adobe.xmp", _XMP)
    if marks.parameters is not None:
        text.add_itxt("parameters", marks.parameters)
    return text


def _exif(parameters: str | None) -> bytes:
    """`UserComment` as its readers expect it: an 8-byte character code, then big-endian UTF-16."""
    if parameters is None:
        return b""
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0" + parameters.encode("utf-16-be")
    # Pillow declares bytes as numbers (BYTE), which readers hand on as such; EXIF has them as UNDEFINED. The entry
    # stands before every text.
    return exif.tobytes().replace(_COMMENT_AS_BYTES, _COMMENT, 1)
