"""Work on many bytes goes to a thread, so that the event loop answers others meanwhile."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

INLINE_BYTES = 512 * 1024
"""Parsing, encoding and joining this many bytes takes 1 to 2 ms on one core; a thread costs 0.1 ms."""


async def offload(size: int, function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Call a function that works on `size` bytes: on the event loop if these are few, else on a thread."""
    if size <= INLINE_BYTES:
        return function(*arguments, **options)
    return await asyncio.to_thread(function, *arguments, **options)
