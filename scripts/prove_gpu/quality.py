"""How far the images of each way are from those of diffusers' pipeline in float32, on the same device."""

import statistics
from typing import Any

import torch
from diffusers import AutoencoderTiny, StableDiffusionXLImg2ImgPipeline
from diffusers.utils import logging

from scripts.prove_gpu import device, images
from scripts.prove_gpu.record import Part
from scripts.prove_gpu.stages import Context, StageFailed
from scripts.prove_gpu.ways import ALL, IMAGES, PEERS


def run(context: Context, part: Part) -> None:
    """Make the exact images, and compare with all that other stages have kept."""
    kept = {way.name: (context.images / f"{way.file}.npy", way.vae == "tiny") for way in ALL}
    kept |= {name: (context.images / f"diffusers-{how}.npy", False) for how, name in PEERS.items()}
    there = {name: found for name, found in kept.items() if found[0].exists()}
    if not there:
        raise StageFailed("there are no images to compare yet: run the stage bench first")
    pipe = _exact_pipeline(context)
    exact = {False: images.by_diffusers(pipe)}
    if any(tiny for _, tiny in there.values()):
        tiny_vae = AutoencoderTiny.from_pretrained(context.weights().tiny_vae, dtype=torch.float32)
        pipe.vae = tiny_vae.to(device.name())
        exact[True] = images.by_diffusers(pipe)
    for name, (file, tiny) in there.items():
        found = images.psnr(images.load(file), exact[tiny])
        part.row(IMAGES, way=name, **{"PSNR, dB": statistics.mean(found), "the worst, dB": min(found)})
    if images.IDENTICAL_DB in (row["the worst, dB"] for row in part.tables[IMAGES]):
        part.note(f"{images.IDENTICAL_DB:g} dB stands for no difference at all.")
    if True in exact:
        part.note("Ways with a tiny VAE are compared with diffusers' pipeline with that VAE.")


def _exact_pipeline(context: Context) -> Any:
    """The pipeline of diffusers with the checkpoint's own VAE, all in float32, and no product in TF32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    logging.disable_progress_bar()
    model = context.weights().model
    pipe = StableDiffusionXLImg2ImgPipeline.from_pretrained(
        model, variant="fp16", dtype=torch.float32, use_safetensors=True, add_watermarker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device.name())
