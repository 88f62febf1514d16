"""LitServe's own way: decode, batch what waits, one pipeline call for jobs of equal steps and strength, encode.

`MODEL` names the checkpoint's folder, `PORT` the port; run as `python lit.py` in an environment of its own.
"""

import io
import os
from collections import defaultdict
from typing import Any

import litserve
import torch
from diffusers import AutoPipelineForImage2Image
from fastapi import Response
from PIL import Image


class Img2Img(litserve.LitAPI):
    """POST /img2img takes the form that our service takes."""

    def setup(self, device: str) -> None:
        self.pipe = AutoPipelineForImage2Image.from_pretrained(
            os.environ["MODEL"], variant="fp16", dtype=torch.float32
        ).to(device)
        self.pipe.set_progress_bar_config(disable=True)

    def decode_request(self, request: Any) -> dict[str, Any]:
        image = Image.open(io.BytesIO(request["image"].file.read())).convert("RGB").resize((512, 512))
        return {
            "image": image,
            "prompt": request["prompt"],
            "steps": int(request.get("num_inference_steps", 4)),
            "strength": float(request.get("strength", 0.9)),
            "seed": int(request.get("seed", 0)),
        }

    def predict(self, jobs: Any) -> Any:
        batched = isinstance(jobs, list)
        results: list[Any] = [None] * len(jobs) if batched else [None]
        groups = defaultdict(list)
        for index, job in enumerate(jobs if batched else [jobs]):
            groups[job["steps"], job["strength"]].append((index, job))
        for (steps, strength), members in groups.items():
            images = self.pipe(
                [job["prompt"] for _, job in members],
                image=[job["image"] for _, job in members],
                num_inference_steps=steps,
                strength=strength,
                guidance_scale=0.0,
                generator=[torch.Generator().manual_seed(job["seed"]) for _, job in members],
            ).images
            for (index, _), image in zip(members, images, strict=True):
                results[index] = image
        return results if batched else results[0]

    def encode_response(self, image: Image.Image) -> Response:
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        return Response(buffer.getvalue(), media_type="image/png")


if __name__ == "__main__":
    api = Img2Img(max_batch_size=4, batch_timeout=0.01, api_path="/img2img")
    litserve.LitServer(api, accelerator="cpu").run(host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning")
