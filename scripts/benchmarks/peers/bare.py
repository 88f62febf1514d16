"""A bare pipeline, called in a loop. `MODEL` is the checkpoint's folder, `ROUNDS` the number of images.

Prints one line of JSON: seconds to import and load, seconds of each image, peak resident size in bytes.
"""

import json
import os
import resource
import time

START = time.perf_counter()

import torch  # noqa: E402
from diffusers.utils import logging  # noqa: E402
from PIL import Image  # noqa: E402

from scripts.benchmarks.peers import pipeline  # noqa: E402


def main() -> None:
    """Make each image with a different prompt."""
    logging.disable_progress_bar()
    pipe = pipeline.load()
    loaded = time.perf_counter() - START
    image, images = Image.effect_noise((512, 512), 64).convert("RGB"), []
    for seed in range(int(os.environ["ROUNDS"])):
        start = time.perf_counter()
        generator = torch.Generator().manual_seed(seed)
        pipe(
            f"wizard {seed}", image=image, num_inference_steps=4, strength=0.9, guidance_scale=0.0, generator=generator
        )
        images.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"loaded": loaded, "images": images, "peak": peak}))


if __name__ == "__main__":
    main()
