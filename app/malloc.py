"""How the allocator treats large blocks: given back while weights are loaded, kept while pictures are made or written.

Every block that is taken from the system anew costs a fault for each page that is written first. A no-op where the C
library is not glibc.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of `mallopt(3)`. Setting one of them also ends their adjustment to what is freed."""

_SMALL = 2**20
_LARGE = 129 * 2**20
"""SDXL's VAE works on many activations of 128 MiB at 512x512. Keeping the few of 256 as well gains nothing more."""

_KEPT = 2**31 - 1
"""Free bytes at the end of the heap that stay there: as many as the option can say."""

_PICTURE = 4 * 2**20
_PICTURES = 8 * 2**20
"""Writing a picture of 512x512 takes half a dozen blocks, none larger than its pixels."""


def _set(option: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(option, value)


@contextmanager
def loading() -> Iterator[None]:
    """In here, every block of a megabyte or more goes back when it is freed: no gaps are left among the weights.

    Afterwards the room of all but the largest activations is kept from one call to the next.
    """
    _set(_M_MMAP_THRESHOLD, _SMALL)
    try:
        yield
    finally:
        _set(_M_MMAP_THRESHOLD, _LARGE)
        _set(_M_TRIM_THRESHOLD, _KEPT)


def serving() -> None:
    """The room in which a picture is received and written is kept for the next, for each thread that does so."""
    _set(_M_MMAP_THRESHOLD, _PICTURE)
    _set(_M_TRIM_THRESHOLD, _PICTURES)
