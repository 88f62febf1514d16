"""Files as base64 in texts: decoded and encoded."""

import base64
import binascii

from app.errors import InvalidImage
from app.pixels import OutputFormat

_PIECE = 2**20
"""Decoded in 2 ms. In between, other threads can run."""

_LAST = 4096
"""The last piece has at least this many characters, since the padding is at the end."""

_ADVICE = "Send the bytes of the image as base64, or as a URL like data:image/png;base64,…"


def decode_base64(text: str, param: str) -> bytes:
    """Decode base64, in lines or not, or a data URL of it. Raises `InvalidImage` for another text."""
    if is_data_url(text):
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise InvalidImage(f"'{param}' is a data: URL without ';base64,'. {_ADVICE}", param=param)
    try:
        return _decode(text)
    except (ValueError, binascii.Error) as error:
        raise InvalidImage(f"'{param}' is not base64. {_ADVICE}", param=param) from error


def _decode(text: str) -> bytes:
    decoded, left, start = [], "", 0
    while len(text) - start > _PIECE + _LAST:
        # Some encoders break it into lines.
        piece = left + "".join(text[start : start + _PIECE].split())
        if "=" in piece:
            raise ValueError("there is padding before the end")
        end = len(piece) // 4 * 4
        decoded.append(base64.b64decode(piece[:end], validate=True))
        left, start = piece[end:], start + _PIECE
    decoded.append(base64.b64decode(left + "".join(text[start:].split()), validate=True))
    return b"".join(decoded)


def is_data_url(text: str) -> bool:
    """Whether a text begins like a data URL."""
    return text[:5].lower() == "data:"


def base64_text(data: bytes) -> str:
    """Bytes as base64."""
    return base64.b64encode(data).decode("ascii")


def data_url(data: bytes, output_format: OutputFormat) -> str:
    """A file as a URL that holds it."""
    return f"data:{output_format.media_type};base64,{base64_text(data)}"
