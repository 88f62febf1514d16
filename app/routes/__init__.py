"""One file or folder per dialect. Each translates between its wire format and `Service.edit`."""

from app.routes import cog, img2img, kserve, openai, stability, system, vertex, webui
from app.web.dialects import Dialect

DIALECTS: tuple[Dialect, ...] = tuple(
    module.DIALECT for module in (img2img, openai, webui, stability, cog, kserve, system, vertex)
)
"""All dialects. Paths that belong to none have the errors of the first one."""
