"""Ray Serve: FastAPI as the ingress of a deployment with a batching method. `PORT` is the port."""

import os
from typing import Annotated, Any

from fastapi import FastAPI, File, Form, Response
from pipeline import BATCH, WAIT_SECONDS, Job, draw, load, png, read
from ray import serve

app = FastAPI()


@serve.deployment(max_ongoing_requests=64)
@serve.ingress(app)
class Img2Img:
    """POST /img2img takes the same form as our service."""

    def __init__(self) -> None:
        self.pipe = load()

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_SECONDS)
    async def draw(self, jobs: list[Job]) -> list[bytes]:
        return [png(image) for image in draw(self.pipe, jobs)]

    @app.get("/health")
    def health(self) -> str:
        return "ok"

    @app.post("/img2img")
    async def img2img(
        self,
        image: Annotated[bytes, File()],
        prompt: Annotated[str, Form()],
        num_inference_steps: Annotated[int, Form()] = 4,
        strength: Annotated[float, Form()] = 0.9,
        seed: Annotated[int, Form()] = 0,
    ) -> Any:
        edited = await self.draw(Job(read(image), prompt, num_inference_steps, strength, seed))
        return Response(edited, media_type="image/png")


if __name__ == "__main__":
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
    serve.run(Img2Img.bind(), route_prefix="/", blocking=True)
