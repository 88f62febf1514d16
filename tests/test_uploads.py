"""What the API process holds for requests that wait: pixels, and no longer the file or the body they came from."""

import asyncio
import base64
import gc
import json
import time
import tracemalloc
from collections.abc import Callable

import pytest
from fastapi import FastAPI

from app.main import create_app
from app.settings import Settings
from tests.pictures import noise, saved

MIB = 2**20
COUNT = 16
LIMIT = 25 * MIB
"""For all together: pixels are 0.75 MiB a request, files 5."""
FORM = "multipart/form-data; boundary=x"


def part(name: str, data: bytes, filename: str = "") -> bytes:
    file = f'; filename="{filename}"' if filename else ""
    return f'--x\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + data + b"\r\n"


def form(image: bytes, **fields: str) -> bytes:
    texts = [part(name, value.encode()) for name, value in {"prompt": "tick=9", **fields}.items()]
    return b"".join([part("image", image, "a.png"), *texts, b"--x--\r\n"])


def web_ui(image: bytes) -> bytes:
    return json.dumps({"init_images": [base64.b64encode(image).decode()], "prompt": "tick=9"}).encode()


def cog(image: bytes) -> bytes:
    url = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    return json.dumps({"input": {"image": url, "prompt": "tick=9"}}).encode()


def cog_with_one_id(image: bytes) -> bytes:
    return json.dumps({"id": "one", **json.loads(cog(image))}).encode()


async def send(app: FastAPI, path: str, media_type: str, body: bytes, read: asyncio.Semaphore) -> None:
    """One request, as a server hands it on: in chunks that nothing else refers to.

    Releases `read` once all are taken.
    """
    chunks = [body[start : start + 65_536] for start in range(0, len(body), 65_536)][::-1]
    del body
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", media_type.encode())],
        "client": ("127.0.0.1", 1),
        "server": ("host", 80),
        "http_version": "1.1",
        "scheme": "http",
        "root_path": "",
        "state": {},
    }

    async def receive() -> dict[str, object]:
        if not chunks:
            read.release()
            await asyncio.Event().wait()
        chunk = chunks.pop()
        return {"type": "http.request", "body": chunk, "more_body": bool(chunks)}

    async def ignore(message: object) -> None:
        pass

    await app(scope, receive, ignore)


@pytest.mark.parametrize(
    ("path", "media_type", "body"),
    [
        ("/img2img", FORM, form),
        ("/v1/images/edits", FORM, form),
        ("/v2beta/stable-image/generate/sd3", FORM, lambda image: form(image, mode="image-to-image", strength="0.9")),
        ("/sdapi/v1/img2img", "application/json", web_ui),
        ("/predictions", "application/json", cog),
        ("/predictions", "application/json", cog_with_one_id),
    ],
    ids=["native", "openai", "stability", "webui", "cog", "cog with one id"],
)
def test_waiting_requests_hold_no_upload(path: str, media_type: str, body: Callable[[bytes], bytes]) -> None:
    image = saved(noise((1340, 1340)), "PNG")
    assert len(image) > 5 * MIB

    async def held() -> int:
        app = create_app(Settings(devices="cpu", max_batch=1), "tests.fakes:load")
        async with app.router.lifespan_context(app):
            service = app.state.service
            while service.status != "ready":  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            tracemalloc.start()
            read = asyncio.Semaphore(0)
            waiting = [asyncio.create_task(send(app, path, media_type, body(image), read)) for _ in range(COUNT)]
            try:
                for _ in range(COUNT):
                    await read.acquire()
                ends, now = time.monotonic() + 30, LIMIT + 1
                # Now all are decoded, one after the other.
                while now > LIMIT and time.monotonic() < ends:
                    await asyncio.sleep(0.1)
                    gc.collect()
                    now, _ = tracemalloc.get_traced_memory()
                assert not any(task.done() for task in waiting)
                return now
            finally:
                tracemalloc.stop()
                for task in waiting:
                    task.cancel()
                await asyncio.wait(waiting)

    assert asyncio.run(held()) <= LIMIT
