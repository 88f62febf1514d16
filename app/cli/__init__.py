"""The command `img2img`."""
