"""Reads the first bytes of an image file: its format, and what would make it too costly to open."""

import re

from app.errors import InvalidImage, UnsupportedImageFormat

Size = tuple[int, int]

_MAX_SCANS = 64
"""Of a JPEG. Encoders write about ten. Each is a pass over all of its pixels, for as little as forty bytes."""

_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")
"""All markers with a length: not a stuffed 0xFF, TEM, restarts and the start."""

_READ = {
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "WEBP": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
}
_REFUSED = {
    "a GIF file": re.compile(rb"GIF8[79]a"),
    "an AVIF file": re.compile(rb".{4}ftyp.{0,48}avi[fs]", re.DOTALL),
    "a HEIC file": re.compile(rb".{4}ftyp(hei|hev|hvc|mif1|msf1)", re.DOTALL),
    "a video": re.compile(rb".{4}ftyp|\x1aE\xdf\xa3|RIFF.{4}AVI ", re.DOTALL),
    "a JPEG XL file": re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "),
    "a JPEG 2000 file": re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  "),
    "a TIFF file": re.compile(rb"II[*+]\0|MM\0[*+]"),
    "a BMP file": re.compile(rb"BM"),
    "an icon file": re.compile(rb"\0\0[\1\2]\0"),
    "a Photoshop file": re.compile(rb"8BPS"),
    "a PDF file": re.compile(rb"%PDF"),
    "an SVG file": re.compile(rb"(\xef\xbb\xbf)?\s*(<svg|<(\?xml|!DOCTYPE svg|!--).{0,1024}?<svg)", re.DOTALL),
    "an HTML page": re.compile(rb"(\xef\xbb\xbf)?\s*<(!DOCTYPE )?html", re.IGNORECASE),
    "base64 text, which must be decoded first": re.compile(rb"data:image/|iVBORw0KGgo|/9j/|UklGR"),
}


def recognise(data: bytes) -> str:
    """Recognise the format by a file's first bytes; returns Pillow's name of it.

    Raises:
        InvalidImage: it is empty.
        UnsupportedImageFormat: it is none of those read here; the message names it if it is known.
    """
    if not data:
        raise InvalidImage("The image is empty. Send the bytes of a PNG, JPEG or WebP file.", param="image")
    for file_format, signature in _READ.items():
        if signature.match(data):
            return file_format
    what = next((name for name, signature in _REFUSED.items() if signature.match(data)), "in no format known here")
    raise UnsupportedImageFormat(f"The image is {what}. Convert it to PNG, JPEG or WebP.", param="image")


def check_scans(data: bytes) -> None:
    """Refuse a JPEG that takes very long to decode. Raises `InvalidImage`."""
    if _scans(data) > _MAX_SCANS:
        raise InvalidImage(f"The image is a JPEG of more than {_MAX_SCANS} scans. Save it anew.", param="image")


def _scans(data: bytes) -> int:
    """The number of scans of a JPEG up to its end mark: what phones append after it does not belong to it."""
    scans, at = 0, 2
    while marker := _MARKER.search(data, at):
        if marker[0].endswith(b"\xd9"):
            break
        scans += marker[0].endswith(b"\xda")
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return scans


def webp_size(data: bytes) -> Size:
    """Width and height of a WebP's canvas, from the header fields of RFC 9649; (0, 0) if there are none."""
    match data[12:16]:
        case b"VP8X":
            return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
        case b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return 0, 0
