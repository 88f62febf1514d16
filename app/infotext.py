"""How an image was made, in the notation of AUTOMATIC1111's web UI: written into files, and read back by tools."""

import json
import re

from app.request import Img2ImgRequest

_NEGATIVE = "Negative prompt: "
_FACT = re.compile(r'\s*([\w ./-]{1,64}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')


_SAMPLERS = {
    "DDIMScheduler": "DDIM",
    "DPMSolverMultistepScheduler": "DPM++ 2M",
    "DPMSolverSDEScheduler": "DPM++ SDE",
    "EulerAncestralDiscreteScheduler": "Euler a",
    "EulerDiscreteScheduler": "Euler",
    "HeunDiscreteScheduler": "Heun",
    "KDPM2AncestralDiscreteScheduler": "DPM2 a",
    "KDPM2DiscreteScheduler": "DPM2",
    "LCMScheduler": "LCM",
    "PNDMScheduler": "PLMS",
    "UniPCMultistepScheduler": "UniPC",
}


def sampler_name(scheduler: str) -> str:
    """The web UI's name for a scheduler class of diffusers; the name of the class if there is none."""
    return _SAMPLERS.get(scheduler, scheduler)


def infotext(request: Img2ImgRequest, seed: int, size: tuple[int, int], model: str, sampler: str, version: str) -> str:
    """The request in the notation of AUTOMATIC1111's web UI, which image tools read back.

    Args:
        request: the parameters.
        seed: the seed that was used, from the request or random.
        size: width and height of the image.
        model: name of the checkpoint.
        sampler: as the web UI calls it.
        version: of this program. The program's name goes before it: the web UI takes a number alone for a version of
            its own, and imitates that version.
    """
    facts = {
        "Steps": request.num_inference_steps,
        "Sampler": _quote(sampler),
        "CFG scale": f"{request.guidance_scale:.15g}",
        "Seed": seed,
        "Size": "x".join(map(str, size)),
        "Model": _quote(model),
        "Denoising strength": f"{request.strength:.15g}",
        "Version": _quote(f"img2img {version}"),
    }
    lines = [request.prompt, ", ".join(f"{name}: {value}" for name, value in facts.items())]
    if request.negative_prompt:
        lines.insert(1, f"{_NEGATIVE}{request.negative_prompt}")
    return "\n".join(lines)


def _quote(value: str) -> str:
    """A value that holds a separator of the notation is written as a JSON string, as the web UI does it."""
    return json.dumps(value, ensure_ascii=False) if set(value) & set(",:\n") else value


def parse_infotext(text: str) -> dict[str, str]:
    """Its values by their names, with the prompts as `Prompt` and `Negative prompt`, as the web UI names them.

    Text in another notation is a prompt without values.
    """
    *lines, last = text.strip().split("\n")
    facts = {name: _unquote(value) for name, value in _FACT.findall(last)}
    if "Steps" not in facts:
        lines, facts = [*lines, last], {}
    prompt, _, negative = "\n".join(lines).partition(f"\n{_NEGATIVE}")
    if prompt.startswith(_NEGATIVE):
        prompt, negative = "", prompt.removeprefix(_NEGATIVE)
    return {"Prompt": prompt, "Negative prompt": negative, **facts}


def _unquote(value: str) -> str:
    try:
        return str(json.loads(value)) if value.startswith('"') else value.strip()
    except ValueError:
        return value
