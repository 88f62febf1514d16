"""OpenAI's images API: `/v1/images/edits`, `/v1/images/variations` and `/v1/models`."""

from app.routes.openai.routes import DIALECT as DIALECT
