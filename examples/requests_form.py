"""A form, sent with requests."""

import os

import requests

url = os.environ.get("IMG2IMG_URL", "http://127.0.0.1:8000")
with open("scripts/demo.png", "rb") as image:
    form = {"files": {"image": image}, "data": {"prompt": "dog wizard", "seed": 42}}
    response = requests.post(f"{url}/img2img", **form, timeout=130)
if not response.ok:
    raise SystemExit(response.json()["detail"])
with open("wizard.png", "wb") as file:
    file.write(response.content)
