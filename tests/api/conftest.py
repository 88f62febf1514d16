"""Clients of the shared server."""

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from app.client import AsyncImg2Img, Edited, Img2Img
from tests.support.canned import Ask

if TYPE_CHECKING:
    import openai


@pytest.fixture(params=["blocking", "asynchronous"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """`edit` of either client."""

    def blocking(url: str, image: bytes = b"x", retries: int = 2, **options: Any) -> Edited:
        with Img2Img(url, retries=retries) as client:
            return client.edit(image, "", **options)

    def asynchronous(url: str, image: bytes = b"x", retries: int = 2, **options: Any) -> Edited:
        async def run() -> Edited:
            async with AsyncImg2Img(url, retries=retries) as client:
                return await client.edit(image, "", **options)

        return asyncio.run(run())

    return blocking if request.param == "blocking" else asynchronous


@pytest.fixture
def api(server: str) -> Any:
    """The web UI's client package."""
    from tests.support.sdks import webui_client

    return webui_client(server)


@pytest.fixture
def client(server: str) -> "Iterator[openai.OpenAI]":
    """OpenAI's SDK."""
    from tests.support.sdks import openai_client

    with openai_client(server) as client:
        yield client
