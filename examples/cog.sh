#!/bin/sh
# The API of a container that Cog builds. The image is in "output", as a data: URL.
set -eu
URL=${IMG2IMG_URL:-http://127.0.0.1:8000}

printf '{"input": {"image": "%s", "prompt": "dog wizard"}}' "$(base64 -w 0 scripts/demo.png)" |
  curl -sS -f -H 'Content-Type: application/json' -d @- "$URL/predictions" |
  sed 's/.*"output": *"data:[^,]*,\([^"]*\)".*/\1/' | base64 -d >wizard.png
