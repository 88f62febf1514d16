"""Markdown tables, and the words for a JSON schema's types, bounds and defaults."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]


class Incomplete(Exception):
    """Something has no description. The message says where it is missing."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as a Markdown table."""
    lines = [list(head), ["---"] * len(head), *(list(row) for row in rows)]
    return "\n".join(f"| {' | '.join(_cell(text) for text in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def required(description: str | None, where: str) -> str:
    """A description.

    Raises:
        Incomplete: it is empty.
    """
    if not description:
        raise Incomplete(f"{where} has no description. Write one sentence there; the docs are made from it.")
    return description


def resolve(schema: Schema, definitions: Schema) -> Schema:
    """A schema without `$ref`, and without the `null` of an optional field."""
    merged = dict(schema)
    options = [*merged.pop("anyOf", []), *merged.pop("oneOf", [])]
    options = [option for option in options if option.get("type") != "null"]
    if len(options) == 1:
        merged = {**options[0], **merged}
    elif options:
        merged["anyOf"] = options
    reference = str(merged.pop("$ref", "")).rpartition("/")[2]
    return {**resolve(definitions[reference], definitions), **merged} if reference else merged


def values(schema: Schema, definitions: Schema) -> str:
    """What a field takes: `integer, 1 to 64`."""
    schema = resolve(schema, definitions)
    if "anyOf" in schema:
        return " or ".join(values(option, definitions) for option in schema["anyOf"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{choice}`" for choice in schema["enum"])
    if schema.get("type") == "boolean":
        return "`true` or `false`"
    return ", ".join(filter(None, (_kind(schema, definitions), _bounds(schema))))


def _kind(schema: Schema, definitions: Schema) -> str:
    kind = str(schema.get("type", "any"))
    if kind == "array":
        least, most = schema.get("minItems"), schema.get("maxItems")
        count = "" if most is None else f" ({most})" if least == most else f" ({least or 0} to {most})"
        return f"list{count} of {values(schema.get('items', {}), definitions)}"
    named = {"path": "path", "binary": "file", "byte": "base64", "password": "secret"}
    return named.get(schema.get("format", ""), {"string": "text"}.get(kind, kind))


def _bounds(schema: Schema) -> str:
    above, least = schema.get("exclusiveMinimum"), schema.get("minimum", schema.get("ge"))
    most, longest = schema.get("maximum", schema.get("le")), schema.get("maxLength")
    if longest is not None:
        return f"up to {longest} characters"
    if least is not None and most is not None:
        return f"{least:g} to {_number(most)}"
    lower = f"above {above:g}" if above is not None else f"at least {_number(least)}" if least is not None else ""
    upper = f"up to {_number(most)}" if most is not None else ""
    return ", ".join(filter(None, (lower, upper)))


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def default(value: object) -> str:
    """A default as the tables show it."""
    if value in (None, ""):
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"
