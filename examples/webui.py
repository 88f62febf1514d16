"""webuiapi, a client of AUTOMATIC1111's web UI."""

import os

import webuiapi
from PIL import Image

url = os.environ.get("IMG2IMG_URL", "http://127.0.0.1:8000")
api = webuiapi.WebUIApi(baseurl=f"{url}/sdapi/v1")
with Image.open("scripts/demo.png") as image:
    result = api.img2img(images=[image], prompt="dog wizard", seed=42)
result.image.save("wizard.png")
