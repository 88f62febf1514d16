"""Fixtures of the tests of the clients."""

import asyncio
from typing import Any

import pytest

from app.client import AsyncImg2Img, Edited, Img2Img
from tests.support.canned import Ask


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
