"""The cache of the encoders."""

import pytest
from cachetools import LRUCache

from app.model.encoders import cached


def never() -> str:
    raise AssertionError("it was there and is made again")


def test_cached_value_is_computed_once() -> None:
    cache = LRUCache[bytes, str](10, len)
    assert cached(cache, b"a", lambda: "value") == ("value", False)
    assert cached(cache, b"a", never) == ("value", True)


def test_full_cache_drops_the_least_recently_used() -> None:
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
def test_value_larger_than_the_cache_is_not_kept(limit: int, value: str) -> None:
    cache = LRUCache[bytes, str](limit, len)
    cached(cache, b"small", lambda: "")
    assert cached(cache, b"large", lambda: value) == (value, False)
    assert cached(cache, b"large", lambda: value) == (value, False)
    assert cached(cache, b"small", never)[1]
    assert cache.currsize == 0


def test_failed_computation_is_not_cached() -> None:
    cache = LRUCache[bytes, str](10, len)
    with pytest.raises(AssertionError):
        cached(cache, b"a", never)
    assert cached(cache, b"a", lambda: "value") == ("value", False)


def test_cleared_cache_is_empty() -> None:
    cache = LRUCache[bytes, str](10, len)
    cached(cache, b"a", lambda: "value")
    cache.clear()
    assert cache.currsize == 0
    assert cached(cache, b"a", lambda: "value") == ("value", False)
