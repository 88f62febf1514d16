"""The client for a running service. It needs httpx2 and nothing else.

    from img2img import Img2Img

    with Img2Img("http://127.0.0.1:8000") as client:
        client.edit("dog.png", "dog wizard", seed=42).save("wizard.png")

`AsyncImg2Img` is the same on an event loop. Each call raises `Img2ImgError` if the service refuses the request, and
`NoService` if none answers.

The imports in this package are relative: it is installed as `img2img`, and is `app.client` for the command line.
"""

from .async_client import AsyncImg2Img
from .responses import Edited, Img2ImgError, NoService, Progress
from .session import LONGEST_WAIT
from .sync_client import Img2Img

__all__ = ["LONGEST_WAIT", "AsyncImg2Img", "Edited", "Img2Img", "Img2ImgError", "NoService", "Progress"]
