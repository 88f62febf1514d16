"""Other projects' client packages."""

from typing import Any
from urllib.parse import urlsplit

import openai
import webuiapi


def webui_client(url: str) -> Any:
    address = urlsplit(url)
    return webuiapi.WebUIApi(host=address.hostname, port=address.port)


def openai_client(url: str, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(**{"base_url": f"{url}/v1", "api_key": "none", "max_retries": 0, **options})
