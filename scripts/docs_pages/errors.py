"""The errors, from the classes of `app.errors`."""

from collections.abc import Iterator

from app.errors import ServiceError
from scripts.docs_pages.tables import required, table

INTERNAL = "A fault of the service itself. The log has more, under the request id."


def errors() -> str:
    """A row for each error class, by status and code."""
    rows = [(str(ServiceError.status), f"`{ServiceError.code}`", INTERNAL)]
    for error in classes():
        meaning = required(error.__doc__, f"The error class '{error.__name__}' in app/errors.py")
        rows.append((str(error.status), f"`{error.code}`", meaning))
    return table(("status", "code", "meaning"), sorted(rows))


def classes(parent: type[ServiceError] = ServiceError) -> Iterator[type[ServiceError]]:
    """Every error that a client can get."""
    for error in parent.__subclasses__():
        if error.__module__ == ServiceError.__module__:
            yield error
            yield from classes(error)
