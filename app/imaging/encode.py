"""Pixels to PNG, WebP or JPEG bytes, with provenance.

Everything here is synchronous and takes milliseconds of one core: call it on a thread. Only raw pixels come in, so
nothing of an upload's metadata, text or colour profile can come out again.
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


def encode_image(
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


def encode_preview(pixels: Pixels, output_format: OutputFormat, marks: Marks) -> bytes:
    """A preview as a file of 512x512; of its marks, that it was generated."""
    small = Image.frombytes("RGB", (pixels.width, pixels.height), pixels.data)
    buffer = BytesIO()
    marks = Marks(generated=marks.generated)
    told = {"pnginfo": _png_text(marks)} if output_format is OutputFormat.PNG else {"xmp": marks.xmp}
    small.resize((IMAGE_SIZE, IMAGE_SIZE)).save(buffer, output_format.value, quality=_PREVIEW_QUALITY, **told)
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
