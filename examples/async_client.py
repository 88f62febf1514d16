"""The client on an event loop, with progress and previews."""

import asyncio
import os

from img2img import AsyncImg2Img, Progress


def show(progress: Progress) -> None:
    print(progress.ahead, progress.step, progress.steps, len(progress.preview or b""))


async def main() -> None:
    async with AsyncImg2Img(os.environ.get("IMG2IMG_URL", "http://127.0.0.1:8000")) as client:
        edited = await client.edit("scripts/demo.png", "dog wizard", on_progress=show, previews=True)
        edited.save("wizard.png")


asyncio.run(main())
