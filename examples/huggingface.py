"""Hugging Face's InferenceClient; its model is the whole URL."""

import os

from huggingface_hub import InferenceClient

url = os.environ.get("IMG2IMG_URL", "http://127.0.0.1:8000")
client = InferenceClient(model=f"{url}/img2img")
image = client.image_to_image("scripts/demo.png", prompt="dog wizard", strength=0.75, seed=42)
image.save("wizard.png")
