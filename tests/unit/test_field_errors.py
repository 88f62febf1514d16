"""The sentences for invalid fields: what came, and what it must be."""

from typing import Any, Literal

import pytest
from pydantic import TypeAdapter, ValidationError

from app.errors import InvalidParameter
from app.field_errors import invalid_field
from app.request import parse_request


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("strength", 7, "strength: 7 is too large; it must be at most 1."),
        ("strength", "1.01", "strength: 1.01 is too large; it must be at most 1."),
        ("strength", "0", "strength: 0 is too small; it must be above 0."),
        ("seed", -1, "seed: -1 is too small; it must be at least 0."),
        ("seed", 1.5, "seed: 1.5 cannot be used; it must be a whole number, like 4."),
        ("seed", True, "seed: true cannot be used; it must be a whole number, like 4."),
        ("strength", "high", "strength: 'high' cannot be used; it must be a finite decimal number, like 0.9."),
        ("fit", "zoom", "fit: 'zoom' is unknown; it must be 'stretch', 'crop' or 'pad'."),
        ("output_format", ["png"], "output_format: ['png'] is unknown; it must be 'png', 'webp' or 'jpeg'."),
        ("prompt", None, "prompt: it is missing; it must be sent."),
        ("prompt", "secret" * 2000, "prompt: 12000 characters are too many; it must be 10000 at most."),
        ("prompt", ["secret"], "prompt: a list cannot be used; it must be text."),
        ("prompt", 7, "prompt: a number cannot be used; it must be text."),
        ("negative_prompt", "\ud800", "negative_prompt: it has half of a surrogate pair; it must be valid Unicode."),
    ],
    ids=lambda value: str(value)[:20].encode("ascii", "replace").decode(),
)
def test_invalid_field_shows_what_came_and_what_it_must_be(field: str, value: Any, sentence: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse_request({"prompt": "x", field: value})
    assert (caught.value.param, caught.value.message) == (field, sentence)


def test_invalid_field_has_the_name_that_the_dialect_uses() -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse_request({"prompt": "x", "guidance_scale": 21}, names={"guidance_scale": "cfg_scale"})
    assert caught.value.message == "cfg_scale: 21 is too large; it must be at most 20."


@pytest.mark.parametrize("value", ["x" * 1000, ["x" * 100] * 9, -(10**400)], ids=["text", "list", "number"])
def test_long_value_is_cut_at_64_characters(value: Any) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse_request({"prompt": "x", "seed": value})
    shown = caught.value.message.removeprefix("seed: ")
    assert 60 <= len(shown.partition(" is too small")[0].partition(" cannot be used")[0]) <= 64


@pytest.mark.parametrize(
    ("kind", "value", "sentence"),
    [
        (bool, "maybe", "flag: 'maybe' is neither; it must be true or false."),
        (Literal["a", "b"], "c", "flag: 'c' is unknown; it must be 'a' or 'b'."),
        (bytes, 5, "flag: Input should be a valid bytes."),
    ],
    ids=["bool", "literal", "other"],
)
def test_error_of_another_type_has_a_sentence(kind: Any, value: Any, sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(kind).validate_python(value)
    assert invalid_field("flag", caught.value.errors()[0]) == sentence
