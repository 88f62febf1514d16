#!/bin/sh
# Four ways to send POST /img2img with curl.
set -eu
URL=${IMG2IMG_URL:-http://127.0.0.1:8000}

# A form. With -f curl fails on an error; without it the error is in the file.
curl -sS -f -F image=@scripts/demo.png -F prompt="dog wizard" -o wizard.png "$URL/img2img"

# More fields, and the response headers on standard output.
curl -sS -f -F image=@scripts/demo.png -F prompt="dog wizard, gandalf, detailed" -F strength=0.75 -F seed=42 \
  -F fit=crop -F output_format=webp -D - -o wizard.webp "$URL/img2img"

# The image as the body, the fields in the query.
curl -sS -f -H "Content-Type: image/png" --data-binary @scripts/demo.png -o wizard-raw.png \
  "$URL/img2img?prompt=dog+wizard&seed=42"

# JSON with the image as base64. Not curl's --json: that asks for JSON in return.
printf '{"inputs": "%s", "parameters": {"prompt": "dog wizard", "seed": 42}}' "$(base64 -w 0 scripts/demo.png)" |
  curl -sS -f -H "Content-Type: application/json" --data-binary @- -o wizard-json.png "$URL/img2img"
