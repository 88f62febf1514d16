"""Forms as they are parsed: what is kept of a body, and when a form counts as whole."""

import asyncio
import tracemalloc
from collections.abc import Iterator

import pytest
from fastapi import Request

from app.errors import MalformedBody
from app.web.forms import read_form

MIB = 2**20
HEAD = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
TAIL = b'\r\n--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na wizard\r\n--x--\r\n'


def request_of(chunks: Iterator[bytes]) -> Request:
    async def receive() -> dict[str, object]:
        chunk = next(chunks, None)
        return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}

    headers = [(b"content-type", b"multipart/form-data; boundary=x")]
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


def upload(size: int, fill: bytes = b"\0") -> Iterator[bytes]:
    """A form in chunks, as a server hands it on; none of them exists before it is asked for."""
    yield HEAD
    for _ in range(size // 65_536):
        yield fill * 65_536
    yield TAIL


@pytest.mark.parametrize("fill", [b"\0", b"\r"])
def test_a_form_of_5_mib_is_held_once(fill: bytes) -> None:
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


def test_a_refused_form_is_received_to_its_end() -> None:
    chunks = upload(MIB)
    with pytest.raises(MalformedBody, match="Too many files"):
        asyncio.run(read_form(request_of(chunks), max_files=0))
    assert next(chunks, None) is None


@pytest.mark.parametrize("missing", range(1, len(TAIL) - 2, 7))
def test_a_form_without_its_end_is_refused(missing: int) -> None:
    chunks = iter([HEAD, b"bytes", TAIL[:-2][:-missing]])
    with pytest.raises(MalformedBody, match="last boundary is missing"):
        asyncio.run(read_form(request_of(chunks)))


def test_text_behind_the_last_boundary_is_ignored() -> None:
    files, _ = asyncio.run(read_form(request_of(iter([HEAD, b"bytes", TAIL, b"epilogue " * 1000]))))
    assert files == {"image": b"bytes"}
