"""The package's own client: it waits and sends again when the service is busy."""

import os

from img2img import Img2Img

with Img2Img(os.environ.get("IMG2IMG_URL", "http://127.0.0.1:8000")) as client:
    edited = client.edit("scripts/demo.png", "dog wizard", strength=0.75, seed=42)
    edited.save("wizard.png")
    print(edited.seed, edited.steps_run, edited.seconds)
