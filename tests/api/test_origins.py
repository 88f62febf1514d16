"""Which pages of the service's own name may send requests without a key."""

from collections.abc import Iterator

import httpx2
import pytest

from tests.support.servers import run_server


@pytest.fixture(scope="module")
def urls() -> Iterator[dict[str, str]]:
    """A server without a key and one with the key `key`, by their keys."""
    listed = "https://listed.example.org"
    with run_server(cors_origins=listed) as unlocked, run_server(cors_origins=listed, api_keys="key") as locked:
        yield {"": unlocked, "key": locked}


@pytest.mark.parametrize(
    ("host", "origin", "keys", "status"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000", "", 422),
        ("[::1]:8000", "http://[::1]:8000", "", 422),
        ("gpu-box:8000", "http://gpu-box:8000", "", 422),
        ("img2img.internal", "https://img2img.internal", "", 422),
        # The owner of the name can have it point here; with a key, the page would have to know that.
        ("stranger.example.org", "http://stranger.example.org", "", 403),
        ("stranger.example.org", "http://stranger.example.org", "key", 422),
        ("listed.example.org", "https://listed.example.org", "", 422),
        ("x", "ftp://x", "", 403),
        ("", "null", "", 403),
    ],
)
def test_own_origin_with_a_public_name_needs_keys(
    host: str, origin: str, keys: str, status: int, urls: dict[str, str]
) -> None:
    headers = {"Host": host, "Origin": origin, "X-API-Key": "key"}
    assert httpx2.post(f"{urls[keys]}/img2img?nonsense=1", headers=headers).status_code == status
