"""stable-diffusion.cpp, called in a loop. `MODEL` is the checkpoint's folder, `ROUNDS` the number of images.

Prints a line of JSON as `bare.py` does. It reads a checkpoint in diffusers format whose weights have the names without
a variant, so a temporary folder has links to them. It computes in what the weights are stored in.
"""

import json
import os
import resource
import tempfile
import time
from pathlib import Path

START = time.perf_counter()

from PIL import Image  # noqa: E402
from stable_diffusion_cpp import StableDiffusion  # noqa: E402


def main() -> None:
    """Make each image with a different prompt."""
    with tempfile.TemporaryDirectory() as folder:
        for weights in Path(os.environ["MODEL"]).absolute().glob("*/*.safetensors"):
            link = Path(folder, weights.parent.name, weights.name.replace(".fp16", ""))
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(weights)
        model = StableDiffusion(
            model_path=folder,
            n_threads=len(os.sched_getaffinity(0)),
            diffusion_flash_attn=True,
            verbose=False,
        )
        loaded = time.perf_counter() - START
        image, images = Image.effect_noise((512, 512), 64).convert("RGB"), []
        for seed in range(int(os.environ["ROUNDS"])):
            start = time.perf_counter()
            model.generate_image(
                f"wizard {seed}",
                init_image=image,
                sample_method="euler_a",
                sample_steps=4,
                strength=0.9,
                cfg_scale=1.0,
                seed=seed,
            )
            images.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"loaded": loaded, "images": images, "peak": peak}))


if __name__ == "__main__":
    main()
