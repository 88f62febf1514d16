"""Runs all stages in order; each resumes where an earlier run stopped."""

import argparse
import json
import os
from pathlib import Path

import torch

from scripts.embedded import autoencoder, export, latents, text, translator
from scripts.embedded.sources import Sources

ROOT = Path(__file__).parent.parent.parent


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="train_embedded",
        description="Train the embedded checkpoint. Takes hours; can be interrupted and resumed at any time.",
    )
    parser.add_argument("--state", type=Path, default=ROOT / "out" / "embedded", help="data and training state (3 GB)")
    parser.add_argument("--out", type=Path, default=ROOT / "app" / "model" / "embedded", help="the checkpoint")
    parser.add_argument(
        "--until",
        choices=["vae", "text", "unet"],
        default="unet",
        help="stop after this stage; only the last one writes the checkpoint",
    )
    parser.add_argument("--vae-steps", type=int, default=4000, help="steps of the autoencoder (default: 4000)")
    parser.add_argument("--text-steps", type=int, default=12000, help="steps of the text encoders (default: 12000)")
    parser.add_argument(
        "--settling-steps", type=int, default=1000, help="steps of the text encoders on hard prompts (default: 1000)"
    )
    parser.add_argument("--unet-steps", type=int, default=4800, help="steps of the UNet (default: 4800)")
    parser.add_argument(
        "--decoder-steps",
        type=int,
        default=2000,
        help="steps of the autoencoder's decoder on the UNet's targets (default: 2000)",
    )
    parser.add_argument("--scenes", type=int, default=1000, help="scenes in the UNet's training data (default: 1000)")
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    sources, state = Sources(options.state / "sources"), options.state / "state"

    vae = autoencoder.train(sources, state, options.vae_steps)
    if options.until == "vae":
        return
    canvases = latents.canvases(vae, sources)
    tokenizers = text.Tokenizers(options.out)
    encoders, _ = text.train(canvases, sources, tokenizers, state, options.text_steps)
    if options.until == "text":
        return
    scenes = latents.make(vae, sources, state, options.scenes)
    unet = translator.train(scenes, encoders, tokenizers, state, options.unet_steps)
    encoders = text.distil(encoders, tokenizers, state, options.settling_steps)
    vae = autoencoder.sharpen(vae, sources, state, options.decoder_steps)
    size = export.write(options.out, vae, encoders, unet)
    print(json.dumps({"bytes": size}))


if __name__ == "__main__":
    main()
