import ctypes

import pytest

from app.engine import memory


def test_freed_blocks_are_given_back_while_weights_are_loaded_and_kept_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(memory, "_set", lambda option, value: told.append((option, value)))
    with memory.loading():
        assert told == [(-3, 2**20)]
    assert dict(told) == {-3: 129 * 2**20, -1: 2**31 - 1}


def test_glibc_takes_the_options() -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        pytest.skip("this is not glibc")
    assert [mallopt(-3, 129 * 2**20), mallopt(-1, 2**31 - 1)] == [1, 1]


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with memory.loading():
        pass
