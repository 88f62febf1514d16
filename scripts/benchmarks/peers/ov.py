"""OpenVINO by optimum-intel, called in a loop. `MODEL` is the checkpoint's folder, `ROUNDS` the number of images.

Prints a line of JSON as `bare.py` does. The checkpoint is converted first, in a process of its own, into `CONVERTED`.
OpenVINO chooses what it computes in: bfloat16 where the CPU has instructions for it.
"""

import json
import os
import resource
import time
from pathlib import Path

START = time.perf_counter()

from optimum.intel import OVStableDiffusionXLImg2ImgPipeline  # noqa: E402
from PIL import Image  # noqa: E402


def main() -> None:
    """Make each image with a different prompt."""
    pipe = OVStableDiffusionXLImg2ImgPipeline.from_pretrained(Path(os.environ["CONVERTED"]))
    pipe.set_progress_bar_config(disable=True)
    loaded = time.perf_counter() - START
    image, images = Image.effect_noise((512, 512), 64).convert("RGB"), []
    for seed in range(int(os.environ["ROUNDS"])):
        start = time.perf_counter()
        pipe(f"wizard {seed}", image=image, num_inference_steps=4, strength=0.9, guidance_scale=0.0)
        images.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"loaded": loaded, "images": images, "peak": peak}))


if __name__ == "__main__":
    main()
