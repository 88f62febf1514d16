"""What was computed once and may be asked for again: the least recently used values go when the bytes are spent."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Cache(Generic[Value]):
    """Values by key, at most `limit` bytes of them. Not thread-safe.

    Args:
        limit: in bytes; 0 keeps nothing.
        size: the bytes of a value.
    """

    def __init__(self, limit: int, size: Callable[[Value], int]) -> None:
        self.limit = limit
        self.used = 0
        self._size = size
        self._values: OrderedDict[bytes, Value] = OrderedDict()

    def get(self, key: bytes, make: Callable[[], Value]) -> tuple[Value, bool]:
        """The value of `key`, made if it is not there; and whether it was there. What `make` raises goes through."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key], True
        value = make()
        self._keep(key, value)
        return value, False

    def clear(self) -> None:
        """Let everything go."""
        self._values.clear()
        self.used = 0

    def _keep(self, key: bytes, value: Value) -> None:
        size = self._size(value)
        if size > self.limit:
            return
        self._values[key] = value
        self.used += size
        while self.used > self.limit:
            self.used -= self._size(self._values.popitem(last=False)[1])
