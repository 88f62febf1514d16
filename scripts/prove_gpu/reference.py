"""diffusers itself, on the same device: the pipeline as it is, and with `torch.compile(mode="max-autotune")`."""

import time

from scripts.prove_gpu import device
from scripts.prove_gpu.children import lines
from scripts.prove_gpu.record import Part
from scripts.prove_gpu.stages import Context, StageFailed
from scripts.prove_gpu.ways import DIFFUSERS, PEERS


def run(context: Context, part: Part) -> None:
    """Measure one image at a time, in both ways."""
    for how in PEERS:
        _measure(context, part, how)


def _measure(context: Context, part: Part, how: str) -> None:
    weights, kept, log = context.weights(), context.images / f"diffusers-{how}.npy", context.out / f"{how}.log"
    kept.unlink(missing_ok=True)
    log.unlink(missing_ok=True)
    environment = {
        "MODEL": weights.model,
        "VAE": weights.vae,
        "DEVICE": device.name(),
        "TORCHINDUCTOR_CACHE_DIR": str(context.work / "compiled" / "diffusers"),
        "TRITON_CACHE_DIR": str(context.work / "compiled" / "diffusers" / "triton"),
    }
    start, row = time.perf_counter(), {}
    try:
        for found in lines("scripts.prove_gpu.peer", (how, str(kept)), log, context.left(), environment):
            if "ready" in found:
                row = part.row(DIFFUSERS, way=PEERS[how], **{"s to the third image": time.perf_counter() - start})
            elif "seconds" in found:
                row |= {"ms an image": 1000 * found["seconds"], "memory, GB": found["peak"] / 1e9}
            elif found["device_seconds"] is not None:
                row["device busy"] = found["device_seconds"] / (row["ms an image"] / 1000)
            part.save()
    except StageFailed as error:
        if not kept.exists():
            raise
        part.note(f"{PEERS[how]}: the device's own time is not known, because the profiler failed ({error}).")
