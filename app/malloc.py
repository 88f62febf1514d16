"""Tunes glibc's allocator for large blocks: freed ones are returned while weights load, and kept while images are made.

Each block that is allocated from the system costs a page fault for each page that is first written. No effect where the
C library is not glibc.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of `mallopt(3)`. Setting one of them also ends their automatic adjustment."""

_SMALL = 2**20
_LARGE = 129 * 2**20
"""SDXL's VAE has many activations of 128 MiB at 512x512. Keeping the few of 256 MiB as well gains nothing more."""

_KEPT = 2**31 - 1
"""Free bytes at the end of the heap that are kept: the largest value of the option."""

_IMAGE = 4 * 2**20
_IMAGES = 8 * 2**20
"""Writing an image of 512x512 takes half a dozen blocks, none larger than its pixels."""


def _set(option: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(option, value)


@contextmanager
def loading() -> Iterator[None]:
    """Inside, each block of a megabyte or more is returned when it is freed: no gaps are left among the weights.

    Afterwards the memory of all but the largest activations is kept from one call to the next.
    """
    _set(_M_MMAP_THRESHOLD, _SMALL)
    try:
        yield
    finally:
        _set(_M_MMAP_THRESHOLD, _LARGE)
        _set(_M_TRIM_THRESHOLD, _KEPT)


def serving() -> None:
    """Keep the memory in which a thread receives and writes an image for the next one."""
    _set(_M_MMAP_THRESHOLD, _IMAGE)
    _set(_M_TRIM_THRESHOLD, _IMAGES)
