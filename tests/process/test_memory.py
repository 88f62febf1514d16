import ctypes
import json
import subprocess
import sys

import pytest

from app import malloc
from tests.support.paths import ROOT

ALLOCATE = """
import ctypes, json
from app import malloc

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes, library.mallinfo2.restype = [ctypes.c_void_p], Info

def allocate(size):
    before = library.mallinfo2()
    block = library.malloc(size)
    during = library.mallinfo2()
    library.free(block)
    after = library.mallinfo2()
    return during.hblks - before.hblks, during.arena - before.arena > size // 2, after.arena == during.arena

with malloc.loading():
    loading = allocate(2**21)
print(json.dumps([loading, *(allocate(size) for size in (2**26, 2**26, 2**28))]))
"""
"""For each block: how many it adds outside the heap, whether the heap grows for it, and whether the heap stays so.

The heap grows by less than the block where its end has free bytes already."""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="this is not glibc 2.33 or newer")
def test_heap_returns_freed_blocks_only_while_loading() -> None:
    command = [sys.executable, "-c", ALLOCATE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loading, first, second, huge = json.loads(done.stdout)
    assert loading == [1, False, True], "a block of 2 MiB is of its own, so that it goes back when freed"
    assert first == [0, True, True], "one of 64 MiB is part of the heap, which stays as large"
    assert second == [0, False, True], "and is taken from there the next time"
    assert huge == [1, False, True], "one of 256 MiB is again of its own"


def test_glibc_accepts_the_options() -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        pytest.skip("this is not glibc")
    assert [mallopt(-3, 129 * 2**20), mallopt(-1, 2**31 - 1)] == [1, 1]


def test_other_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with malloc.loading():
        pass
