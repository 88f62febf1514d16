"""BentoML: a batching service behind an HTTP service, since a batchable method takes a single parameter.

Run by `bentoml serve bento:Img2Img`.
"""

from pathlib import Path

import bentoml
from bentoml import Context
from pipeline import BATCH, Job, draw, load, png, read
from pydantic import BaseModel, ConfigDict


class Item(BaseModel):
    """One image to make."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    image: bytes
    prompt: str
    steps: int
    strength: float
    seed: int


@bentoml.service(workers=1, traffic={"timeout": 600, "max_concurrency": 64})
class Model:
    """Holds the pipeline."""

    def __init__(self) -> None:
        self.pipe = load()

    @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=600_000)
    def draw(self, items: list[Item]) -> list[bytes]:
        jobs = [Job(read(item.image), item.prompt, item.steps, item.strength, item.seed) for item in items]
        return [png(image) for image in draw(self.pipe, jobs)]


@bentoml.service(workers=1, traffic={"timeout": 600, "max_concurrency": 64})
class Img2Img:
    """POST /img2img takes the same form as our service."""

    model = bentoml.depends(Model)

    @bentoml.api(route="/img2img")
    def img2img(
        self,
        context: Context,
        image: Path,
        prompt: str,
        num_inference_steps: int = 4,
        strength: float = 0.9,
        seed: int = 0,
    ) -> bytes:
        item = Item(image=image.read_bytes(), prompt=prompt, steps=num_inference_steps, strength=strength, seed=seed)
        (edited,) = self.model.draw([item])
        context.response.headers["content-type"] = "image/png"
        return edited
