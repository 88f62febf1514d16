"""Cog: `/predictions`, the HTTP API of a container that Cog built, as Replicate and others run it."""

from app.routes.cog.routes import DIALECT as DIALECT
