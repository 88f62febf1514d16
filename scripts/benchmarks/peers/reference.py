"""The reference: one pipeline behind a lock in FastAPI, with Pillow's PNG encoder, as a user would write it.

`MODEL` names the checkpoint's folder; run by uvicorn with `--factory scripts.benchmarks.peers.reference:create_app`.
"""

import io
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import torch
from fastapi import FastAPI, File, Form, HTTPException
from fastapi.responses import StreamingResponse
from PIL import Image

from scripts.benchmarks.peers import pipeline


def create_app() -> FastAPI:
    """POST /img2img takes the same form as our service."""
    lock, loaded = threading.Lock(), {}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loaded["pipe"] = pipeline.load()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/health/ready")
    def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/img2img")
    def img2img(
        image: Annotated[bytes, File()],
        prompt: Annotated[str, Form()],
        num_inference_steps: Annotated[int, Form()] = 4,
        strength: Annotated[float, Form()] = 0.9,
        seed: Annotated[int, Form()] = 0,
    ) -> Any:
        if num_inference_steps * strength < 1:
            raise HTTPException(422, "num_inference_steps x strength must be at least 1")
        start = Image.open(io.BytesIO(image)).convert("RGB").resize((512, 512))
        with lock:
            started = time.perf_counter()
            result = loaded["pipe"](
                prompt,
                image=start,
                num_inference_steps=num_inference_steps,
                strength=strength,
                guidance_scale=0.0,
                generator=torch.Generator().manual_seed(seed),
            ).images[0]
            milliseconds = 1000 * (time.perf_counter() - started)
        buffer = io.BytesIO()
        result.save(buffer, format="PNG")
        buffer.seek(0)
        # Only for the benchmark: the part of the latency that the model takes.
        return StreamingResponse(
            buffer, media_type="image/png", headers={"Server-Timing": f"pipe;dur={milliseconds:.1f}"}
        )

    return app
