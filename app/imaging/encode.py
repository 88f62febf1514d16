"""Pixels to PNG, WebP or JPEG bytes, with provenance.

Everything here is synchronous and takes milliseconds of one core: call it on a thread. Only raw pixels come in, so
no metadata, text or colour profile of an upload can come out.
"""

import struct
from concurrent.futures import Executor
from dataclasses import dataclass
from io import BytesIO

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from app.imaging import png
from app.pixels import IMAGE_SIZE, OutputFormat, Pixels

_QUALITY = {OutputFormat.WEBP: 90, OutputFormat.JPEG: 92}
_PREVIEW_QUALITY = 80
_COMMENT_AS_BYTES, _COMMENT = (struct.pack(">HH", ExifTags.Base.UserComment, kind) for kind in (1, 7))
"""The first half of an entry in an EXIF directory: its tag and the type of its value."""

_MAX_JPEG_EXIF = 65_533
"""Bytes that fit into a JPEG marker segment."""

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
"""IPTC's term for an image that is composed of another one and the output of generative AI."""

_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="{DIGITAL_SOURCE_TYPE}"/>'
    '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
).encode()


@dataclass(frozen=True, slots=True)
class Marks:
    """The metadata that is written into a file.

    Attributes:
        parameters: an `infotext`, where image tools look for it: the PNG text `parameters`, in the others the EXIF
            `UserComment`. A JPEG has room for about 32,000 characters; a longer text is left out.
        generated: whether its XMP says that it was made with generative AI (IPTC `DigitalSourceType`).
    """

    parameters: str | None = None
    generated: bool = True

    @property
    def xmp(self) -> bytes:
        """The XMP packet; empty if there is none."""
        return _XMP if self.generated else b""


def encode_image(
    pixels: Pixels, output_format: OutputFormat, marks: Marks, helper: Executor, quality: int | None = None
) -> bytes:
    """Write an image as a file: PNG without loss, WebP at quality 90, JPEG at quality 92, or at the quality given.

    Args:
        pixels: the image.
        output_format: the file format.
        marks: the metadata.
        helper: does half of a PNG's work; must not be the executor that this runs on.
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


def encode_preview(pixels: Pixels, output_format: OutputFormat, marks: Marks, size: int = IMAGE_SIZE) -> bytes:
    """A preview as a file with `size` pixels on each side. Of the metadata, it has that it was generated."""
    small = Image.frombytes("RGB", (pixels.width, pixels.height), pixels.data)
    buffer = BytesIO()
    marks = Marks(generated=marks.generated)
    options = {"pnginfo": _png_text(marks)} if output_format is OutputFormat.PNG else {"xmp": marks.xmp}
    small.resize((size, size)).save(buffer, output_format.value, quality=_PREVIEW_QUALITY, **options)
    return buffer.getvalue()


def _png_text(marks: Marks) -> PngInfo:
    """The metadata as iTXt chunks, since a tEXt chunk holds Latin-1 only."""
    text = PngInfo()
    if marks.generated:
        text.add_itxt("XML:com.adobe.xmp", _XMP)
    if marks.parameters is not None:
        text.add_itxt("parameters", marks.parameters)
    return text


def _exif(parameters: str | None) -> bytes:
    """EXIF with `UserComment` as its readers expect it: an 8-byte character code, then big-endian UTF-16."""
    if parameters is None:
        return b""
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0" + parameters.encode("utf-16-be")
    # Pillow declares the bytes as BYTE, which readers take for a list of numbers; EXIF says UNDEFINED. The entry stands
    # before every text, so that the first match is the entry.
    return exif.tobytes().replace(_COMMENT_AS_BYTES, _COMMENT, 1)
