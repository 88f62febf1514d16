"""An NVIDIA driver that is too old for torch's build: its version, and what CUDA says of it."""

OLD_VERSION = "550.54.15"

OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver."
