"""Forms as they are parsed: what is kept of a body, and when a form counts as whole."""

import asyncio
import tracemalloc
from collections.abc import Iterator

import pytest
from fastapi import Request

from app.errors import MalformedBody, UnsupportedMediaType
from app.web.forms import read_form

MIB = 2**20
HEAD = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
TAIL = b'\r\n--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na wizard\r\n--x--\r\n'


def request_of(chunks: Iterator[bytes], content_type: bytes = b"multipart/form-data; boundary=x") -> Request:
    async def receive() -> dict[str, object]:
        chunk = next(chunks, None)
        return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}

    return Request({"type": "http", "method": "POST", "headers": [(b"content-type", content_type)]}, receive)


def upload(size: int, fill: bytes = b"\0") -> Iterator[bytes]:
    """A form in chunks, as a server hands it on; none of them exists before it is asked for."""
    yield HEAD
    for _ in range(size // 65_536):
        yield fill * 65_536
    yield TAIL


@pytest.mark.parametrize("fill", [b"\0", b"\r"])
def test_form_of_5_mib_is_held_once(fill: bytes) -> None:
    async def read() -> tuple[int, int]:
        files, fields = await read_form(request_of(upload(5 * MIB, fill)))
        held, peak = tracemalloc.get_traced_memory()
        assert (files["image"], fields) == (fill * 5 * MIB, {"prompt": "a wizard"})
        return held, peak

    tracemalloc.start()
    try:
        held, peak = asyncio.run(read())
    finally:
        tracemalloc.stop()
    assert held < 5.5 * MIB
    assert peak < 12 * MIB


def test_refused_form_is_received_to_its_end() -> None:
    chunks = upload(MIB)
    with pytest.raises(MalformedBody, match="Too many files"):
        asyncio.run(read_form(request_of(chunks), max_files=0))
    assert next(chunks, None) is None


@pytest.mark.parametrize("missing", range(1, len(TAIL) - 2, 7))
def test_form_without_its_end_is_refused(missing: int) -> None:
    chunks = iter([HEAD, b"bytes", TAIL[:-2][:-missing]])
    with pytest.raises(MalformedBody, match="last boundary is missing"):
        asyncio.run(read_form(request_of(chunks)))


def test_text_after_the_last_boundary_is_ignored() -> None:
    files, _ = asyncio.run(read_form(request_of(iter([HEAD, b"bytes", TAIL, b"epilogue " * 1000]))))
    assert files == {"image": b"bytes"}


def text_part(disposition: bytes, text: bytes = b"a wizard", more: bytes = b"") -> bytes:
    return b"--x\r\nContent-Disposition: form-data; " + disposition + b"\r\n" + more + b"\r\n" + text + b"\r\n"


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([text_part(b"filename=a")], 'field "name" must be provided'),
        ([text_part(f"name=f{i}".encode()) for i in range(41)], "Too many fields. Maximum number of fields is 40"),
        ([text_part(b"name=prompt", more=b"Content-Type: text/plain; charset=latin-1\r\n")], "'prompt' must be utf-8"),
        ([text_part(b"name=prompt", b"gr\xfcn")], "'prompt' is not in UTF-8"),
        ([text_part(b"name=prompt", b"x" * 65_537)], "longer than the 64 KiB"),
        ([text_part(b"name=image", b"x" * 65_537)], "as a file part named 'image'"),
        ([b"--x\r\nno header\r\n\r\nbytes\r\n"], "Invalid multipart data"),
        ([b"--y\r\n"], "last boundary is missing: .* or is no form"),
    ],
    ids=["name", "fields", "charset", "text", "long", "image", "header", "boundary"],
)
def test_malformed_form_is_refused_with_the_reason(parts: list[bytes], reason: str) -> None:
    with pytest.raises(MalformedBody, match=reason):
        asyncio.run(read_form(request_of(iter([*parts, b"--x--\r\n"]))))


@pytest.mark.parametrize(
    ("content_type", "reason"),
    [
        (b"multipart/form-data", "has no boundary. Let the HTTP library set this header"),
        (b"multipart/form-data; boundary=", "has no boundary. Let the HTTP library set this header"),
        (b"multipart/form-data; boundary=x; charset=latin-1", "charset must be utf-8"),
        (b"multipart/form-data; boundary=" + b"x" * 1000, "Invalid multipart data"),
    ],
    ids=["none", "empty", "charset", "long"],
)
def test_malformed_content_type_is_refused(content_type: bytes, reason: str) -> None:
    with pytest.raises(MalformedBody, match=reason):
        asyncio.run(read_form(request_of(iter([HEAD, TAIL]), content_type)))


def test_image_as_text_and_name_in_latin_1_are_returned() -> None:
    form = [text_part(b"name=image", b"\x89PNG"), text_part(b'name="gr\xfcn"'), b"--x--\r\n"]
    assert asyncio.run(read_form(request_of(iter(form)))) == ({}, {"image": "\x89PNG", "gr\xfcn": "a wizard"})


def test_body_of_another_type_is_refused() -> None:
    with pytest.raises(UnsupportedMediaType, match="Send multipart/form-data"):
        asyncio.run(read_form(request_of(iter([b"{}"]), b"application/json")))
