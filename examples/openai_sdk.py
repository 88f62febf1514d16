"""OpenAI's SDK for Python; fields of /img2img go into extra_body."""

import base64
import os

from openai import OpenAI

url = os.environ.get("IMG2IMG_URL", "http://127.0.0.1:8000")
client = OpenAI(base_url=f"{url}/v1", api_key="none")
with open("scripts/demo.png", "rb") as image:
    extra = {"strength": 0.75, "seed": 42}
    response = client.images.edit(image=image, prompt="dog wizard", extra_body=extra)
with open("wizard.png", "wb") as file:
    file.write(base64.b64decode(response.data[0].b64_json))
