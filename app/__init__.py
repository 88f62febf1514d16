"""SDXL-Turbo image-to-image as a service."""

__version__ = "0.1.0"
