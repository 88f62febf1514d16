"""The weights: SDXL-Turbo where it is on this disk, else random ones of the same size."""

import json
import shutil
from pathlib import Path

from app.errors import CheckpointError
from app.model import hub
from app.model.sources import FP16_VAE, TINY_VAE, TURBO
from app.settings import Settings
from scripts.make_checkpoint import write_checkpoint, write_half_vae, write_tiny_vae
from scripts.prove_gpu.record import Part
from scripts.prove_gpu.stages import Context, Weights

SEED = 0


def run(context: Context, part: Part) -> None:
    """Find or write the weights, and write down where they are."""
    weights = (_downloaded(part) if context.size == "full" else None) or _random(context)
    # Images of other weights are not to be compared.
    shutil.rmtree(context.images, ignore_errors=True)
    context.weights_file.parent.mkdir(parents=True, exist_ok=True)
    context.weights_file.write_text(json.dumps(weights))
    part.row("Weights", weights=weights.name, vae=Path(weights.vae).name, tiny_vae=Path(weights.tiny_vae).name)


def _downloaded(part: Part) -> Weights | None:
    """The files of the hub that are on this disk; None without SDXL-Turbo and its VAE."""
    settings = Settings()

    def folder(name: str) -> str:
        select = hub.vae_files if name != TURBO else lambda names: hub.pipeline_files(names, with_vae=True)
        return str(hub.fetch(name, hub.PINS[name], select, cache=settings.hub_cache, offline=True))

    try:
        model, vae = folder(TURBO), folder(FP16_VAE)
    except CheckpointError as error:
        part.note(f"The weights are random: {error}")
        return None
    try:
        return Weights(TURBO, model, vae, folder(TINY_VAE))
    except CheckpointError as error:
        part.note(f"Nothing is measured with a tiny VAE: {error}")
        return Weights(TURBO, model, vae, "")


def _random(context: Context) -> Weights:
    """Random weights, written unless an earlier run has written all of them."""
    model, vae, tiny_vae = (context.work / name for name in ("checkpoint", "vae", "tiny-vae"))
    complete = context.work / "random"
    if not complete.exists():
        write_checkpoint(model, context.size, SEED)
        write_half_vae(vae, SEED, context.size)
        write_tiny_vae(tiny_vae, SEED, context.size)
        complete.touch()
    name = "random, of SDXL-Turbo's size" if context.size == "full" else "random, of a few MB"
    return Weights(name, str(model), str(vae), str(tiny_vae))
