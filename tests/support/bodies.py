"""A body of each dialect that holds an image."""

import json
from collections.abc import Callable
from typing import Any

Body = tuple[str, str, bytes]
"""A path, a Content-Type, and a body."""


def form(path: str, image: bytes, **fields: str) -> Body:
    texts = "".join(
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()
    )
    head = f'{texts}--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    return path, "multipart/form-data; boundary=b", head.encode() + image + b"\r\n--b--\r\n"


def as_json(path: str, body: dict[str, Any]) -> Body:
    return path, "application/json", json.dumps(body).encode()


BODIES: dict[str, Callable[[bytes, str], Body]] = {
    "form": lambda image, _: form("/img2img", image, prompt="x"),
    "raw": lambda image, _: ("/img2img", "image/png", image),
    "hugging face": lambda _, text: as_json("/img2img", {"inputs": text}),
    "stability": lambda image, _: form("/v2beta/stable-image/generate/sd3", image, prompt="x", mode="image-to-image"),
    "openai": lambda image, _: form("/v1/images/edits", image, prompt="x"),
    "openai, two images": lambda image, _: form("/v1/images/edits", image, prompt="x", n="2"),
    "openai, stream": lambda image, _: form("/v1/images/edits", image, prompt="x", stream="true"),
    "web ui": lambda _, text: as_json("/sdapi/v1/img2img", {"init_images": [text], "prompt": "x"}),
    "cog": lambda _, text: as_json("/predictions", {"input": {"image": f"data:image/png;base64,{text}"}}),
    "cog, one id": lambda _, text: as_json(
        "/predictions", {"id": "one", "input": {"image": f"data:image/png;base64,{text}"}}
    ),
    "vertex": lambda _, text: as_json("/vertex", {"instances": [{"image": text}]}),
}
