"""Fields of forms and JSON objects, read leniently, with the defaults and bounds of a model."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

from annotated_types import Ge, Le
from pydantic import BaseModel, TypeAdapter, ValidationError

from app.errors import InvalidParameter, ServiceError
from app.request import Integer, Number

Model = type[BaseModel]

_INTEGER: TypeAdapter[int] = TypeAdapter(Integer)
_NUMBER: TypeAdapter[float] = TypeAdapter(Number)
_BOOL: TypeAdapter[bool] = TypeAdapter(bool)


def names(*models: Model) -> tuple[str, ...]:
    """The names of the fields of models, in their order."""
    return tuple(dict.fromkeys(name for model in models for name in model.model_fields))


def default(model: Model, name: str) -> Any:
    """The value of a field that is absent."""
    return model.model_fields[name].default


def bounds(model: Model, name: str) -> tuple[float, float | None]:
    """The minimum and the maximum of a number field. Each has a minimum."""
    metadata = model.model_fields[name].metadata
    most = next((one.le for one in metadata if isinstance(one, Le)), None)
    least = next(one.ge for one in metadata if isinstance(one, Ge))
    return least, most  # type: ignore[return-value]


def choices(model: Model, name: str) -> tuple[Any, ...]:
    """The values that a field of a `Literal` type can have."""
    return get_args(model.model_fields[name].annotation)


def integer(fields: Mapping[str, Any], model: Model, name: str) -> int:
    """A whole number, as JSON or text. Raises `InvalidParameter` for another value, or one out of bounds."""
    least, most = bounds(model, name)
    value = fields.get(name, default(model, name))
    return parse_integer(value, name, int(least), None if most is None else int(most))


def parse_integer(value: Any, name: str, least: int, most: int | None = None) -> int:
    """A whole number, as JSON or text. Raises `InvalidParameter` for another value, or one out of bounds."""
    try:
        number = _INTEGER.validate_python(value)
    except ValidationError:
        number = least - 1
    if number < least or (most is not None and number > most):
        allowed = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise InvalidParameter(f"{name} must be a whole number {allowed}.", param=name)
    return number


def number(fields: Mapping[str, Any], model: Model, name: str) -> float:
    """A decimal number, as JSON or text. Raises `InvalidParameter` for another value, or one out of bounds."""
    least, most = bounds(model, name)
    try:
        value = _NUMBER.validate_python(fields.get(name, default(model, name)))
    except ValidationError:
        value = least - 1
    if value < least or (most is not None and value > most):
        raise InvalidParameter(f"{name} must be a number from {least:g} to {most:g}.", param=name)
    return value


def choice(fields: Mapping[str, Any], model: Model, name: str) -> Any:
    """One of the values of a `Literal`. Raises `InvalidParameter` for another value."""
    allowed = choices(model, name)
    value = fields.get(name, default(model, name))
    if value not in allowed:
        raise InvalidParameter(f"{name} can be {' or '.join(allowed)} here, and nothing else.", param=name)
    return value


def boolean(value: Any, name: str) -> bool:
    """True or false, as JSON or text. Raises `InvalidParameter` if it is neither."""
    try:
        return _BOOL.validate_python(value)
    except ValidationError:
        raise InvalidParameter(f"{name} must be true or false.", param=name) from None


def mapping(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object inside a JSON object; an empty one if it is absent or null. Raises `InvalidParameter`."""
    value = body.get(name)
    if not isinstance(value, dict | None):
        raise InvalidParameter(f"{name} must be an object.", param=name)
    return value or {}


def unique(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Pairs as a dict. Raises `InvalidParameter` for a name that comes twice."""
    fields: dict[str, Any] = {}
    for name, value in items:
        if name in fields:
            raise InvalidParameter(f"'{name[:64]}' was sent more than once.", param=name[:64])
        fields[name] = value
    return fields


@contextmanager
def prefix_param(where: str, message_prefix: str = "") -> Iterator[None]:
    """Raise errors of a field as those of a field inside another one: `input.seed`."""
    try:
        yield
    except ServiceError as error:
        if error.param is None:
            raise
        raise error.at(where, message_prefix) from error
