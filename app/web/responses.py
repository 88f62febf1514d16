"""Images as answers."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.edits import EditedImage
from app.web.offload import offload

_CHUNK = 256 * 1024


class _Streamed(StreamingResponse):
    """Without a task that waits for a disconnect: the data is complete, so that sending ends anyway."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.stream_response(send)


def image_file_response(image: EditedImage) -> Response:
    """The file of an image."""
    headers = {
        "Content-Disposition": f'inline; filename="{image.filename}"',
        "Cache-Control": "no-store",
        **headers_of_images(image),
    }
    return bytes_response(image.data, image.output_format.media_type, headers)


async def json_of_images(
    render: Callable[[], str], images: Sequence[EditedImage], media_type: str = "application/json"
) -> Response:
    """JSON that holds images, with their headers. `render` may run on a thread."""
    content = await offload(sum(len(image.data) for image in images), lambda: render().encode())
    return bytes_response(content, media_type, headers_of_images(*images))


def bytes_response(data: bytes, media_type: str, headers: Mapping[str, str]) -> Response:
    """An answer in chunks: a slow reader holds the connection and no copy of the data, and no chunk takes long."""
    return _Streamed(_chunks(data), headers={"Content-Length": str(len(data)), **headers}, media_type=media_type)


def headers_of_images(*images: EditedImage) -> dict[str, str]:
    """The headers of an image; of several, those that all have, and the largest number of tokens that were cut."""
    headers = [_headers(image) for image in images]
    common = dict(set(headers[0].items()).intersection(*(one.items() for one in headers)))
    if cut := max(image.tokens_cut for image in images):
        common["X-Prompt-Tokens-Cut"] = str(cut)
    return common


def _headers(image: EditedImage) -> dict[str, str]:
    return {
        "X-Seed": str(image.seed),
        "X-Steps-Run": str(image.steps_run),
        "X-Start-Timestep": f"{image.start_timestep:g}",
        "Server-Timing": ", ".join(f"{stage};dur={seconds * 1000:.1f}" for stage, seconds in image.seconds.items()),
    }


async def _chunks(data: bytes) -> AsyncIterator[memoryview]:
    view = memoryview(data)
    for start in range(0, len(view), _CHUNK):
        yield view[start : start + _CHUNK]
