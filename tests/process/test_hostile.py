"""Hostile files, forms, JSON and HTTP, sent to a whole real server: each gets its status and does no harm."""

import asyncio
import io
import json
import random
import re
from collections.abc import Iterator
from contextlib import suppress

import httpx2
import pytest
from PIL import Image

from scripts.resilience.target import Target
from tests.support.hostile import IMAGE, PROMPT, form, part, unharmed
from tests.support.http import connect, post, problem
from tests.support.images import (
    FILES,
    MODES,
    SMALL,
    many_scans,
    noise,
    orientation,
    resized_jpeg,
    saved,
    webp,
    webp_bomb,
)
from tests.support.images import png as raw_png


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with unharmed(tmp_path_factory.mktemp("target")) as target:
        yield target


LIARS = {
    # The decoders leave the rest grey, or black.
    "a JPEG that says it is larger": (resized_jpeg((4_000, 4_000)), 200),
    "a PNG of fewer rows than it says": (raw_png((64, 64), 8, 2, bytes(193)), 200),
    "a PNG without width": (raw_png((0, 5), 8, 2, b"\0"), 422),
    "a PNG of a depth that there is not": (raw_png((1, 1), 3, 2, b"\0\0\0\0"), 422),
    "a WebP canvas of more than its frame": (webp_bomb(b"VP8X", (3_000, 3_000)), 422),
    "a PNG called a JPEG": (FILES["PNG"], 200),
}
SHAPES = {
    "1 x 1": (saved(noise((1, 1)), "PNG"), 200),
    "1 x 20000": (saved(noise((1, 20_000)), "PNG"), 200),
    "20000 x 1": (saved(noise((20_000, 1)), "PNG"), 200),
    "zero bytes": (b"", 422),
    "one byte": (b"\x89", 415),
    "MPO": (saved(SMALL, "MPO", save_all=True, append_images=[SMALL]), 200),
    "APNG": (saved(SMALL, "PNG", save_all=True, append_images=[noise((24, 24), seed=1)]), 200),
    **{f"orientation {n}": (saved(SMALL, "JPEG", exif=orientation(n)), 200) for n in range(1, 9)},
    **{f"mode {name}": (data, 200) for name, (data, _) in MODES.items()},
}
POLYGLOTS = {
    "a PNG with a zip behind it": (FILES["PNG"] + b"PK\3\4" + bytes(100), 200),
    "a JPEG with a film behind it": (FILES["JPEG"] + b"\xff\xda" * 1_000, 200),
    "a JPEG of twenty scans": (many_scans(10), 200),
    "a JPEG with a page behind it": (FILES["JPEG"] + b"<script>alert(1)</script>", 200),
    "a page with a PNG behind it": (b"<html>" + FILES["PNG"], 415),
    "a PDF with a JPEG in it": (b"%PDF-1.4\n" + FILES["JPEG"], 415),
    "a PNG start on a JPEG": (b"\x89PNG\r\n\x1a\n" + FILES["JPEG"], 422),
    "a WebP start on a PNG": (webp(b"VP8L", FILES["PNG"]), 422),
    "a script": (b"#!/bin/sh\nrm -rf /\n", 415),
    "PostScript": (b"%!PS-Adobe-3.0\n/x { } def\n", 415),
}
SMALL_FILES = {**LIARS, **SHAPES, **POLYGLOTS}


@pytest.mark.parametrize("name", SMALL_FILES)
def test_each_hostile_file_gets_its_status(target: Target, name: str) -> None:
    data, status = SMALL_FILES[name]
    answer = post(target.url, data)
    assert answer.status_code == status, answer.content[:300]
    if status == 200:
        assert Image.open(io.BytesIO(answer.content)).size == (512, 512)
    else:
        assert problem(answer, status, answer.json()["code"], "image")


def boundaries(data: bytes) -> Iterator[int]:
    """Where a file's pieces begin and end: a PNG's and a WebP's chunks, a JPEG's markers; and a byte beside each."""
    ends = {len(data) // 2, len(data) - 1}
    if data.startswith(b"\x89PNG"):
        place = 8
        while place < len(data):
            ends.add(place)
            place += 12 + int.from_bytes(data[place : place + 4], "big")
    elif data.startswith(b"RIFF"):
        place = 12
        while place < len(data):
            ends.add(place)
            size = int.from_bytes(data[place + 4 : place + 8], "little")
            place += 8 + size + size % 2
    else:
        ends |= {match.start() for match in re.finditer(rb"\xff[^\0]", data)}
    return (place for end in sorted(ends) for place in (end - 1, end, end + 1) if 0 < place < len(data))


@pytest.mark.parametrize("kind", FILES)
def test_truncated_file_is_read_or_refused_and_never_a_fault(target: Target, kind: str) -> None:
    data = FILES[kind]
    for end in boundaries(data):
        answer = post(target.url, data[:end])
        # Behind its last pixel a file may end as it likes.
        assert answer.status_code in ((200, 415, 422) if end > 0.9 * len(data) else (415, 422)), (kind, end)


MULTIPART = {
    "thousands of parts": (form(IMAGE, *(part(f"p{n}", b"") for n in range(5_000))), 400),
    "thousands of files": (form(*(part("image", b"", filename="a") for _ in range(5_000))), 400),
    "a huge field": (form(IMAGE, part("prompt", bytes(3_000_000))), 400),
    "a huge name": (form(IMAGE, part("n" * 1_000_000, b"")), 400),
    "many headers": (form(part("image", b"x", *(f"X-{n}: y" for n in range(1_000)), filename="a")), 400),
    "a huge header": (form(part("image", b"x", "X: " + "y" * 100_000, filename="a")), 400),
    "no end": (form(IMAGE, PROMPT, close=False), 400),
    "another boundary": (form(IMAGE, PROMPT, boundary=b"y"), 400),
    "a form in the form": (
        form(PROMPT, part("image", form(IMAGE, boundary=b"z"), "Content-Type: multipart/mixed; boundary=z")),
        422,
    ),
    "text that is no UTF-8": (form(IMAGE, part("prompt", b"\xff\xfe\x00d")), 400),
    "text in UTF-16": (
        form(IMAGE, part("prompt", "dog".encode("utf-16le"), "Content-Type: text/plain; charset=utf-16le")),
        400,
    ),
    "a charset that there is not": (
        form(IMAGE, part("prompt", b"dog", "Content-Type: text/plain; charset=klingon")),
        400,
    ),
    "a part without a name": (form(IMAGE, b"Content-Disposition: form-data\r\n\r\nx"), 400),
    "a part without a head": (form(IMAGE, b"\r\nx"), 400),
    "nothing": (b"", 400),
    "only its end": (b"--x--\r\n", 422),
    "nulls": (form(IMAGE, part("prompt", bytes(10))), 200),
    "a field twice": (form(IMAGE, PROMPT, PROMPT), 422),
    "a file name that climbs": (form(part("image", FILES["PNG"], filename="../../../etc/passwd"), PROMPT), 200),
}


@pytest.mark.parametrize(("body", "status"), MULTIPART.values(), ids=MULTIPART)
def test_each_hostile_form_gets_its_status(target: Target, body: bytes, status: int) -> None:
    answer = httpx2.post(
        f"{target.url}/img2img", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert answer.status_code == status, answer.content[:300]
    if status != 200:
        problem(answer, status, answer.json()["code"], answer.json().get("param"))


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "y" * 500,
        "multipart/form-data; boundary=\xe9",
        "multipart/form-data; boundary=x; charset=utf-7",
        "multipart/form-data; boundary=x; charset=undefined",
        "multipart/form-data; boundary=x; charset=idna",
        "multipart/form-data; boundary=x; charset=UTF-8",
        "multipart/mixed; boundary=x",
    ],
)
def test_hostile_content_type_of_a_form_is_no_fault(target: Target, content_type: str) -> None:
    answer = httpx2.post(
        f"{target.url}/img2img",
        content=form(IMAGE, PROMPT),
        headers={b"Content-Type": content_type.encode("latin-1")},
    )
    assert answer.status_code in (200, 400, 415), answer.text


JSONS = {
    "deep lists": b"[" * 200_000,
    "deep objects": b'{"a":' * 100_000,
    "deep and closed": b"[" * 100_000 + b"]" * 100_000,
    "a huge number": b'{"inputs": "", "parameters": {"seed": 1' + b"0" * 100_000 + b"}}",
    "an integer too large for a float": b'{"inputs": "", "parameters": {"strength": 1' + b"0" * 400 + b"}}",
    "a name without end": b'{"inputs": "", "parameters": {"' + b"x" * 10**7 + b'": 1}}',
    "millions of parts": b'{"inputs": "", "parameters": {"prompt": [' + b"{}," * 5_000_000 + b"{}]}}",
    "half a character for a name": b'{"inputs": "", "parameters": {"\\ud800": 1}}',
    "half a character for a name, twice": b'{"inputs": "", "parameters": {"\\ud800": 1, "\\ud800": 1}}',
    "a field twice": b'{"inputs": "", "parameters": {"prompt": "a", "prompt": "b"}}',
    "a list for an object": b'{"inputs": "", "parameters": []}',
    "numbers that are none": b'{"inputs": "", "parameters": {"strength": NaN, "guidance_scale": Infinity}}',
    "lone surrogates": b'{"inputs": "iVBO", "parameters": {"prompt": "\\ud800"}}',
    "a key twice": b'{"inputs": "", "inputs": ""}',
    "not UTF-8": b'{"inputs": "\xff"}',
    "UTF-16": '{"inputs": ""}'.encode("utf-16"),
    "a list where text belongs": b'{"inputs": "", "parameters": {"prompt": []}}',
    "base64 that is none": b'{"inputs": "%%%%"}',
    "base64 of nothing": b'{"inputs": ""}',
    "a data URL of nothing": b'{"inputs": "data:"}',
    "nothing": b"",
    "null": b"null",
}


@pytest.mark.parametrize("body", JSONS.values(), ids=JSONS)
def test_hostile_json_is_refused_and_never_a_fault(target: Target, body: bytes) -> None:
    answer = httpx2.post(f"{target.url}/img2img", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422), answer.text
    problem(answer, answer.status_code, answer.json()["code"], answer.json().get("param"))


def test_prompt_of_surrogates_or_nulls_is_never_a_fault(target: Target) -> None:
    import base64

    picture = base64.b64encode(FILES["PNG"]).decode()
    for prompt in ("\ud800", "\0", "\u202e\u2066", "🧙" * 5000, "a\r\nb"):
        for format_ in ("png", "webp", "jpeg"):
            body = json.dumps({"inputs": picture, "parameters": {"prompt": prompt, "output_format": format_}})
            answer = httpx2.post(
                f"{target.url}/img2img", content=body.encode(), headers={"Content-Type": "application/json"}
            )
            assert answer.status_code in (200, 422), (prompt[:5], format_, answer.text)


def test_malformed_http_is_refused_or_cut_off(target: Target) -> None:
    draw = random.Random(0)
    for data in (
        b"\0" * 1000 + b"\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /img2img HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /img2img HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /img2img HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
        b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        draw.randbytes(2_000) + b"\r\n\r\n",
    ):
        with connect(target.url) as connection, suppress(ConnectionError, TimeoutError):
            connection.settimeout(3)
            connection.sendall(data)
            said = connection.recv(20)
            assert not said or re.match(rb"HTTP/1.1 4\d\d ", said), (data[:40], said)
    assert post(target.url, FILES["PNG"]).status_code == 200


@pytest.mark.parametrize("path", ["/%00", "/..%2f..%2fetc/passwd", "//img2img", "/img2img/", "/IMG2IMG", "/img2img%3f"])
def test_unknown_paths_are_not_found(target: Target, path: str) -> None:
    with connect(target.url) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: evil@host\r\nConnection: close\r\n\r\n".encode())
        answer = connection.makefile("rb").read()
    assert re.match(rb"HTTP/1.1 (404|405|307|400) ", answer), answer[:60]


def test_address_in_a_request_is_never_fetched(target: Target) -> None:
    """Neither as a picture, nor in a header, nor in the JSON."""

    async def listen() -> list[bytes]:
        asked: list[bytes] = []

        async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append(await reader.read(100))

        server = await asyncio.start_server(note, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/a.png"
        async with httpx2.AsyncClient(trust_env=False) as client:
            for body in ({"inputs": url}, {"inputs": url, "parameters": {"prompt": url}}):
                answer = await client.post(f"{target.url}/img2img", json=body)
                assert answer.status_code == 422
            answer = await client.post(
                f"{target.url}/img2img",
                data={"image": url, "prompt": url},
                headers={"X-Forwarded-Host": url, "Referer": url, "Origin": target.url},
            )
            assert answer.status_code in (415, 422)
        server.close()
        return asked

    assert asyncio.run(listen()) == []
