"""What a Python program imports to talk to a running service: httpx2 and the standard library, no torch, no FastAPI.

    from app.client import Img2Img

    with Img2Img("http://127.0.0.1:8000") as client:
        client.edit("dog.png", "dog wizard", seed=42).save("wizard.png")

`AsyncImg2Img` is the same on an event loop. Every call raises `Img2ImgError` for what the service refuses, and
`NoService` if there is none.
"""

from app.client.async_client import AsyncImg2Img
from app.client.responses import Edited, Img2ImgError, NoService, Progress
from app.client.session import LONGEST_WAIT
from app.client.sync_client import Img2Img

__all__ = ["LONGEST_WAIT", "AsyncImg2Img", "Edited", "Img2Img", "Img2ImgError", "NoService", "Progress"]
