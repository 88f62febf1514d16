"""LitServe: decode, batch the waiting requests, encode. `PORT` is the port; run as `python lit.py`."""

import os

import litserve
from fastapi import Request, Response
from PIL import Image
from pipeline import BATCH, WAIT_SECONDS, Job, draw, load, png, read


class Img2Img(litserve.LitAPI):
    """POST /img2img takes the same form as our service."""

    def setup(self, device: str) -> None:
        self.pipe = load().to(device)

    def decode_request(self, request: Request) -> Job:
        return Job(
            read(request["image"].file.read()),
            request["prompt"],
            int(request.get("num_inference_steps", 4)),
            float(request.get("strength", 0.9)),
            int(request.get("seed", 0)),
        )

    def predict(self, jobs: list[Job]) -> list[Image.Image]:
        return draw(self.pipe, jobs)

    def encode_response(self, image: Image.Image) -> Response:
        return Response(png(image), media_type="image/png")


if __name__ == "__main__":
    api = Img2Img(max_batch_size=BATCH, batch_timeout=WAIT_SECONDS, api_path="/img2img")
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning", generate_client_file=False)
