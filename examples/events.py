"""Server-sent events: the place in the queue, each step, the previews, and the image."""

import base64
import json
import os

import requests

url = os.environ.get("IMG2IMG_URL", "http://127.0.0.1:8000")
headers = {"Accept": "text/event-stream", "X-Previews": "1"}
with open("scripts/demo.png", "rb") as file:
    form = {"files": {"image": file}, "data": {"prompt": "dog wizard", "seed": 42}}
    response = requests.post(f"{url}/img2img", **form, headers=headers, stream=True, timeout=130)
if not response.ok:
    raise SystemExit(response.json()["detail"])

name = ""
for line in response.iter_lines(decode_unicode=True):
    if line.startswith("event: "):
        name = line.removeprefix("event: ")
    elif line.startswith("data: "):
        data = json.loads(line.removeprefix("data: "))
        if name == "waiting":
            print(f"{data['ahead']} requests are ahead")
        elif name == "step":
            what = "preview of step" if "preview" in data else "step"
            print(f"{what} {data['step']} of {data['steps']}")
        elif name == "error":
            raise SystemExit(data["detail"])
        elif name == "picture":
            _, _, text = data["image"].partition(",")
            with open("wizard.png", "wb") as image:
                image.write(base64.b64decode(text))
