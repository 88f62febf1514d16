"""JSON bodies, which may hold an image as 20 MiB of base64.

`json.loads` holds Python's global lock until it is done: 36 ms for such a body on one core, in which no other thread
runs, the event loop neither. So long base64 strings are taken out first, and no call here works on more than a few MiB.
"""

import json
import secrets
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from fastapi import Request

from app.errors import MalformedBody
from app.web.bodies import read_chunks
from app.web.fields import unique
from app.web.offload import offload

T = TypeVar("T")

_JSON = "application/json"

_MAX_PARTS = 50_000
"""Two prompts of nothing but commas have fewer; base64 has none."""

_MAX_BYTES = 4 * 2**20
"""Besides long base64 strings: more than all texts that are read have, and parsed in less than 10 ms."""

_WINDOW = 128 * 1024
"""A base64 string is long if it has a window of this size without a quote."""

_PIECE = 2**20
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=-_"
_HEAD_BYTES = 128
_HEAD_ALPHABET = _ALPHABET + b":;,."
"""Of the beginning, since `data:image/png;base64,` has other signs."""


async def read_json(request: Request, parse: Callable[[dict[str, Any]], T]) -> T:
    """The JSON object that is the body of a request, as `parse` reads it; on a thread if the body is large.

    Raises:
        InvalidParameter: it is JSON of another kind, or has a name twice.
        MalformedBody: it is not JSON, or has so many parts that they would take much more memory than the body.
        ClientDisconnect: the client has gone.
    """
    chunks = await read_chunks(request)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return await offload(sum(map(len, chunks)), _parse, chunks, media_type, parse)


def _parse(chunks: list[bytes], media_type: str, parse: Callable[[dict[str, Any]], T]) -> T:
    data = b"".join(chunks)
    chunks.clear()
    return parse(parse_json(data, media_type))


def parse_json(data: bytes, media_type: str = _JSON) -> dict[str, Any]:
    """A JSON object. Raises `InvalidParameter` and `MalformedBody`, as `read_json`.

    Args:
        data: the body.
        media_type: what its Content-Type says; read only for the error message.
    """
    token = secrets.token_hex(8)
    rest, strings = _without_long_strings(data, token)
    if len(rest) > _MAX_BYTES:
        raise MalformedBody(
            f"The JSON has more than {_MAX_BYTES // 2**20} MiB besides base64. Send one image and text."
        )
    if sum(map(rest.count, (b",", b"[", b"{"))) > _MAX_PARTS:
        raise MalformedBody(f"The JSON has more than {_MAX_PARTS:,} commas and brackets. Send one image and text.")
    try:
        body = json.loads(rest, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise MalformedBody(f"{_not_json(data, media_type)} Send a JSON object, {{…}}, as {_JSON}.") from error
    if not isinstance(body, dict):
        raise MalformedBody("The body must be a JSON object: {…}.")
    return _restored(body, strings) if strings else body


def _not_json(data: bytes, media_type: str) -> str:
    """What came instead of JSON."""
    if not data.strip():
        return "The body is empty."
    if media_type == _JSON:
        return "The body is not valid JSON."
    return f"The body is not valid JSON; its Content-Type is {media_type[:64] or 'missing'}."


def _without_long_strings(data: bytes, token: str) -> tuple[bytes, dict[str, str]]:
    """The JSON with a placeholder for each long base64 string, and the strings by their placeholders."""
    rest: list[bytes] = []
    strings: dict[str, str] = {}
    done = 0
    for begin, end in _gaps(data):
        text = _base64(data, begin, end)
        if text is not None:
            placeholder = f"{token}-{len(strings)}"
            strings[placeholder] = text
            rest += [data[done:begin], placeholder.encode()]
            done = end
    return (b"".join([*rest, data[done:]]) if strings else data), strings


def _gaps(data: bytes) -> Iterator[tuple[int, int]]:
    """Where there is a window's length or more without a quote between two quotes."""
    start = 0
    while start < len(data):
        if data.find(b'"', start, start + _WINDOW) >= 0:
            start += _WINDOW
            continue
        begin, end = data.rfind(b'"', 0, start) + 1, data.find(b'"', start)
        if end < 0:
            return
        if begin > 0:
            yield begin, end
        start = end + 1


def _base64(data: bytes, begin: int, end: int) -> str | None:
    """The text between two quotes, if it is a base64 string or a data URL; None if it may be anything else.

    What stands between two strings begins with a colon, a comma, a bracket or a space: never like base64. If the first
    quote is an escaped one, this is only the end of a string.
    """
    edges = data[begin : begin + 1] + data[end - 1 : end]
    if edges.translate(None, _ALPHABET) or data[begin - 2 : begin - 1] == b"\\":
        return None
    pieces: list[bytes] = []
    while begin < end:
        piece = data[begin : min(begin + _PIECE, end)]
        begin += len(piece)
        if piece.endswith(b"\\"):
            piece += data[begin : begin + 1]
            begin += 1
        if b"\\" in piece:
            # Some encoders escape each slash, or break base64 into lines.
            piece = piece.replace(b"\\/", b"/").replace(b"\\r", b"").replace(b"\\n", b"")
        head = piece[:_HEAD_BYTES] if not pieces else b""
        if head.translate(None, _HEAD_ALPHABET) or piece[len(head) :].translate(None, _ALPHABET):
            return None
        pieces.append(piece)
    return b"".join(pieces).decode("ascii")


def _restored(body: dict[str, Any], strings: dict[str, str]) -> dict[str, Any]:
    """The body with its long strings. Without recursion: it may be nested deeply."""
    left: list[Any] = [body]
    while left:
        container = left.pop()
        for key, value in list(container.items() if isinstance(container, dict) else enumerate(container)):
            if isinstance(value, str) and value in strings:
                container[key] = strings[value]
            elif isinstance(value, dict | list):
                left.append(value)
            if key in strings:
                container[strings[key]] = container.pop(key)
    return body
