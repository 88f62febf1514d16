"""The denoising engine: a front half in the API process, a back half in one child process per device."""
