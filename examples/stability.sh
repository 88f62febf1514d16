#!/bin/sh
# Stability AI's REST API: only the host differs.
set -eu
URL=${IMG2IMG_URL:-http://127.0.0.1:8000}

curl -sS -f -H 'Accept: image/*' -F mode=image-to-image -F image=@scripts/demo.png -F prompt="dog wizard" \
  -F strength=0.75 -o wizard.png "$URL/v2beta/stable-image/generate/sd3"
