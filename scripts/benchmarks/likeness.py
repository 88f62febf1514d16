"""How close two images are."""

import numpy as np


def psnr(image: np.ndarray, wanted: np.ndarray) -> float:
    """The peak signal-to-noise ratio of 8-bit values, in dB; infinite for equal ones."""
    error = np.mean((image.astype(float) - wanted) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")
