"""What is kept, for how long, and what it may take."""

import pytest
from cachetools import LRUCache

from app.model.encoders import cached


def never() -> str:
    raise AssertionError("it was there and is made again")


def test_a_value_is_made_once() -> None:
    cache = LRUCache[bytes, str](10, len)
    assert cached(cache, b"a", lambda: "value") == ("value", False)
    assert cached(cache, b"a", never) == ("value", True)


def test_the_least_recently_used_goes_first_once_the_bytes_are_spent() -> None:
    cache = LRUCache[bytes, str](10, len)
    for key in (b"a", b"b", b"c"):
        cached(cache, key, lambda: "xxx")
    cached(cache, b"a", never)
    cached(cache, b"d", lambda: "xxxx")
    assert cache.currsize == 10
    assert cached(cache, b"a", never)[1]
    assert cached(cache, b"d", never)[1]
    assert not cached(cache, b"b", lambda: "")[1]


@pytest.mark.parametrize(("limit", "value"), [(0, "x"), (3, "xxxx")])
def test_a_value_that_has_no_room_is_given_and_pushes_nothing_out(limit: int, value: str) -> None:
    cache = LRUCache[bytes, str](limit, len)
    cached(cache, b"small", lambda: "")
    assert cached(cache, b"large", lambda: value) == (value, False)
    assert cached(cache, b"large", lambda: value) == (value, False)
    assert cached(cache, b"small", never)[1]
    assert cache.currsize == 0


def test_a_failure_is_not_kept() -> None:
    cache = LRUCache[bytes, str](10, len)
    with pytest.raises(AssertionError):
        cached(cache, b"a", never)
    assert cached(cache, b"a", lambda: "value") == ("value", False)


def test_nothing_is_left_after_clearing() -> None:
    cache = LRUCache[bytes, str](10, len)
    cached(cache, b"a", lambda: "value")
    cache.clear()
    assert cache.currsize == 0
    assert cached(cache, b"a", lambda: "value") == ("value", False)
