"""What CUDA says of an old driver."""

OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver."
