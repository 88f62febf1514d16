"""AUTOMATIC1111's web UI, its HTTP API for image-to-image."""

from app.routes.webui.routes import DIALECT as DIALECT
