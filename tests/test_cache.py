"""What is kept, for how long, and what it may take."""

import pytest

from app.model.lru import Cache


def never() -> str:
    raise AssertionError("it was there and is made again")


def test_a_value_is_made_once() -> None:
    cache = Cache[str](10, len)
    assert cache.get(b"a", lambda: "value") == ("value", False)
    assert cache.get(b"a", never) == ("value", True)


def test_the_least_recently_used_goes_first_once_the_bytes_are_spent() -> None:
    cache = Cache[str](10, len)
    for key in (b"a", b"b", b"c"):
        cache.get(key, lambda: "xxx")
    cache.get(b"a", never)
    cache.get(b"d", lambda: "xxxx")
    assert cache.used == 10
    assert cache.get(b"a", never)[1]
    assert cache.get(b"d", never)[1]
    assert not cache.get(b"b", lambda: "")[1]


@pytest.mark.parametrize(("limit", "value"), [(0, "x"), (3, "xxxx")])
def test_a_value_that_has_no_room_is_given_and_pushes_nothing_out(limit: int, value: str) -> None:
    cache = Cache[str](limit, len)
    cache.get(b"small", lambda: "")
    assert cache.get(b"large", lambda: value) == (value, False)
    assert cache.get(b"large", lambda: value) == (value, False)
    assert cache.get(b"small", never)[1]
    assert cache.used == 0


def test_a_failure_is_not_kept() -> None:
    cache = Cache[str](10, len)
    with pytest.raises(AssertionError):
        cache.get(b"a", never)
    assert cache.get(b"a", lambda: "value") == ("value", False)


def test_nothing_is_left_after_clearing() -> None:
    cache = Cache[str](10, len)
    cache.get(b"a", lambda: "value")
    cache.clear()
    assert cache.used == 0
    assert cache.get(b"a", lambda: "value") == ("value", False)
