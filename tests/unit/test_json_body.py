"""JSON bodies with long base64 strings are read as the standard library reads them, in short steps."""

import base64
import binascii
import json
import random
from typing import Any

import pytest

from app.errors import InvalidImage, InvalidParameter, MalformedBody
from app.web import json_body
from app.web.base64_files import decode_base64
from app.web.json_body import parse_json

MIB = 2**20
LONG = base64.b64encode(random.Random(1).randbytes(2 * MIB)).decode()


def long_strings(data: bytes) -> int:
    """How many strings are taken out."""
    return len(json_body._without_long_strings(data, "token")[1])


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": LONG},
        {"inputs": f"data:image/png;base64,{LONG}", "parameters": {"prompt": 'a "dog"', "seed": 1}},
        {"init_images": [LONG], "mask": None, "nested": [[{"image": LONG[:300_000]}], LONG[5:]]},
        {"a": "", "image": LONG, "b": "short"},
    ],
    ids=["alone", "data URL", "in lists", "between others"],
)
def test_long_base64_is_taken_out_and_put_back(body: dict[str, Any]) -> None:
    for data in (json.dumps(body).encode(), json.dumps(body, indent=2).encode()):
        assert long_strings(data) >= 1
        assert parse_json(data) == body


def test_escaped_slashes_and_line_breaks_in_base64_are_read() -> None:
    data = json.dumps({"image": LONG}).replace("/", "\\/").encode()
    assert long_strings(data) == 1
    assert parse_json(data) == {"image": LONG}
    # The backslash is the last byte of a piece.
    data = b'{"image": "' + b"A" * (MIB - 1) + b"\\/" + b"A" * MIB + b'"}'
    assert long_strings(data) == 1
    assert parse_json(data) == json.loads(data)
    lines = "\r\n".join(LONG[start : start + 76] for start in range(0, len(LONG), 76))
    data = json.dumps({"image": lines}).encode()
    assert long_strings(data) == 1
    assert parse_json(data) == {"image": LONG}


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": "' + b"x" * MIB + b" " + b'"}',
        b'{"a": "' + b"x" * MIB + b" " + b'x"}',
        b" " * MIB + b'{"a": 1}',
        b'{"a": "' + b"\\u0041" * 100_000 + b'"}',
        b'{"a": "\\"' + b"A" * MIB + b'"}',
        b'{"a": "' + b"A" * MIB + b'\\""}',
        b'{"a": 1.' + b"1" * MIB + b', "b": 2}',
        b'{"a": ' + b" " * MIB + b'"b"}',
        b'{"a": "' + "\u00fc".encode() * 100_000 + b'"}',
    ],
    ids=[
        "space at the end",
        "space inside",
        "space before",
        "escapes",
        "quote before",
        "quote after",
        "number",
        "white space",
        "not ASCII",
    ],
)
def test_other_long_text_is_left_to_the_parser(data: bytes) -> None:
    assert long_strings(data) == 0
    assert parse_json(data) == json.loads(data)


def test_long_name_is_put_back() -> None:
    assert parse_json(f'{{"{LONG}": 1, "b": "{LONG}"}}'.encode()) == {LONG: 1, "b": LONG}


def test_name_that_comes_twice_is_refused_beside_long_base64() -> None:
    with pytest.raises(InvalidParameter, match="'a' was sent more than once"):
        parse_json(f'{{"a": "{LONG}", "a": "{LONG}"}}'.encode())


@pytest.mark.parametrize("data", [f'{{"a": "{LONG}', f'{{"a": {LONG}"}}', f'"{LONG}', LONG])
def test_broken_json_with_long_base64_is_malformed(data: str) -> None:
    with pytest.raises(MalformedBody, match="not valid JSON"):
        parse_json(data.encode())


@pytest.mark.parametrize(
    ("data", "media_type", "came"),
    [
        (b"", "", "The body is empty."),
        (b" \r\n", "application/json", "The body is empty."),
        (b"{", "application/json", "The body is not valid JSON."),
        (b"{", "", "The body is not valid JSON; its Content-Type is missing."),
        (b"a=b", "application/x-www-form-urlencoded", "its Content-Type is application/x-www-form-urlencoded."),
        (b"--x", "x" * 100, f"its Content-Type is {'x' * 64}."),
    ],
    ids=["empty", "white space", "broken", "no type", "form", "long type"],
)
def test_body_that_is_no_json_is_named_with_its_type(data: bytes, media_type: str, came: str) -> None:
    with pytest.raises(MalformedBody) as caught:
        parse_json(data, media_type)
    assert caught.value.message.endswith(f"{came} Send a JSON object, {{…}}, as application/json.")


def test_long_base64_alone_is_no_object() -> None:
    with pytest.raises(MalformedBody, match="must be a JSON object"):
        parse_json(f'"{LONG}"'.encode())


def test_more_than_4_mib_besides_base64_is_malformed() -> None:
    data = json.dumps({"image": LONG, "prompt": "x " * (2 * MIB)}).encode()
    with pytest.raises(MalformedBody, match="more than 4 MiB besides base64"):
        parse_json(data)


def reference(text: str) -> bytes | None:
    """What the standard library makes of it in one piece."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (ValueError, binascii.Error):
        return None


@pytest.mark.parametrize("padding", ["", "=", "==", "===", "= =", "\n=="])
@pytest.mark.parametrize("size", [3, MIB - 1, MIB, MIB + 4096, MIB + 4097, MIB + 5000, 2 * MIB + 8193])
def test_base64_in_pieces_is_decoded_as_in_one(size: int, padding: str) -> None:
    text = LONG[:size] + padding
    for candidate in (text, " " + text, text[: size // 2] + "\r\n" + text[size // 2 :]):
        wanted = reference(candidate)
        if wanted is None:
            with pytest.raises(InvalidImage):
                decode_base64(candidate, "image")
        else:
            assert decode_base64(candidate, "image") == wanted


@pytest.mark.parametrize("wrong", ["=", "*", "ü", "-"])
@pytest.mark.parametrize("place", [10, MIB, MIB + 5000])
def test_base64_with_a_wrong_character_is_refused_wherever_it_is(place: int, wrong: str) -> None:
    text = LONG[:place] + wrong + LONG[place + 1 :]
    with pytest.raises(InvalidImage, match="'image' is not base64"):
        decode_base64(text, "image")
