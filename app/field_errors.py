"""The sentence for an invalid field: what came, and what it must be."""

import reprlib
from typing import Any

from pydantic_core import ErrorDetails

_SHOWN_CHARACTERS = 64
_KINDS = {list: "a list", dict: "an object", bool: "true or false", type(None): "null"}


def invalid_field(name: str, error: ErrorDetails) -> str:
    """A sentence in place of pydantic's words. Of a text, which may be a prompt, it has the length only.

    Args:
        name: what the client calls the field.
        error: one of `ValidationError.errors()`.
    """
    value, limits = error.get("input"), error.get("ctx", {})
    match error["type"]:
        case "missing":
            fault, wanted = "it is missing", "sent"
        case "greater_than":
            fault, wanted = f"{_shown(value)} is too small", f"above {_shown(limits['gt'])}"
        case "greater_than_equal":
            fault, wanted = f"{_shown(value)} is too small", f"at least {_shown(limits['ge'])}"
        case "less_than_equal":
            fault, wanted = f"{_shown(value)} is too large", f"at most {_shown(limits['le'])}"
        case "integer" | "number":
            fault, wanted = f"{_shown(value)} cannot be used", error["msg"]
        case "enum" | "literal_error":
            fault, wanted = f"{_shown(value)} is unknown", limits["expected"]
        case "bool_parsing" | "bool_type":
            fault, wanted = f"{_shown(value)} is neither", "true or false"
        case "string_too_long":
            fault, wanted = f"{len(str(value))} characters are too many", f"{limits['max_length']} at most"
        case "string_type":
            fault, wanted = f"{_KINDS.get(type(value), 'a number')} cannot be used", "text"
        case "string_unicode":
            fault, wanted = "it has half of a surrogate pair", "valid Unicode"
        case _:
            return f"{name}: {error['msg']}."
    return f"{name}: {fault}; it must be {wanted}."


def _shown(value: Any) -> str:
    """A value as the client wrote it, shortened."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        text = str(value).removesuffix(".0")
    else:
        shortened = reprlib.Repr()
        shortened.maxstring = shortened.maxother = _SHOWN_CHARACTERS
        text = shortened.repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"
