"""Reads a body of the web UI's `/img2img`: some fields are clamped, and some are refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.edits import Upload
from app.errors import InvalidParameter
from app.pixels import IMAGE_SIZE, Fit, OutputFormat
from app.request import MAX_STEPS, Img2ImgRequest, parse_request, smallest_steps, with_consecutive_seeds
from app.routes.webui.models import TURBO_STEPS, WebUIFields, WebUISampler
from app.web.base64_files import decode_base64
from app.web.fields import boolean, default, integer, mapping, number, parse_integer

_ALIASES = {"Euler a": ("k_euler_a", "k_euler_ancestral"), "Euler": ("k_euler",)}
"""Further names of the web UI's samplers."""

_MAX_IMAGES = 10
_FITS = {0: Fit.STRETCH, 1: Fit.CROP, 2: Fit.PAD}

_OF_THE_SAMPLER = WebUISampler().model_dump()
"""The values of the model's sampler; others give way like the sampler itself."""

_EMPTY: tuple[Any, ...] = ("", "None", [], 0, False)
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        ("mask", "script_name", "styles", "tiling", "restore_faces", "subseed_strength", "infotext"), _EMPTY
    ),
    "refiner_checkpoint": _EMPTY,
    "seed_resize_from_w": (0, -1),
    "seed_resize_from_h": (0, -1),
    "initial_noise_multiplier": (1,),
}
"""Fields that are not supported, with the values that have no effect: clients send these."""

_NEUTRAL_SETTINGS: dict[str, tuple[Any, ...]] = {
    "CLIP_stop_at_last_layers": (1,),
    "sd_vae": ("Automatic", "None"),
    "eta_noise_seed_delta": (0,),
}
_SETTINGS_OF_FILES = ("samples_", "grid_", "save_", "return_", "outdir_", "do_not_", "live_preview", "enable_pnginfo")
"""Prefixes of settings about files on the web UI's disk."""


@dataclass(frozen=True, slots=True)
class EditRequest:
    """What a body asks for.

    Attributes:
        image: the uploaded file.
        requests: one for each image, of seeds that follow each other.
        taken: fields that may be clamped, with the values that were taken.
        clamped: the clamped ones among them, with the sent and the taken value.
        sampler: the model's own.
        model: the name of the model in the body.
        send_images: whether the answer holds the images.
    """

    image: Upload
    requests: tuple[Img2ImgRequest, ...]
    taken: dict[str, Any]
    clamped: dict[str, tuple[Any, Any]]
    sampler: str
    model: str | None
    send_images: bool


def aliases(sampler: str) -> tuple[str, ...]:
    """Other names of a sampler."""
    return _ALIASES.get(sampler, ())


def parse_webui(body: Mapping[str, Any], sampler: str) -> EditRequest:
    """What a body of `/img2img` asks for. Unknown fields are ignored, as by the web UI; null is the same as absent.

    Steps, guidance and samplers that do not fit the model are clamped.

    Args:
        body: the JSON object.
        sampler: the model's own.

    Raises:
        InvalidParameter: a field that would change the image cannot be honoured.
        InvalidImage: the image is not base64.
    """
    body = {name: value for name, value in body.items() if value is not None}
    _refuse_unsupported(body)
    mode = body.get("resize_mode", default(WebUIFields, "resize_mode"))
    fit = _FITS.get(mode) if isinstance(mode, int) else None
    if fit is None:
        raise InvalidParameter("resize_mode can be 0 (stretch), 1 (crop) or 2 (fill) here.", param="resize_mode")
    size, rounds = (integer(body, WebUIFields, name) for name in ("batch_size", "n_iter"))
    if size * rounds > _MAX_IMAGES:
        raise InvalidParameter(f"batch_size x n_iter can be {_MAX_IMAGES} at most.", param="batch_size")
    strength, scale = (number(body, WebUIFields, name) for name in ("denoising_strength", "cfg_scale"))
    steps = integer(body, WebUIFields, "steps")
    run = max(min(steps, TURBO_STEPS), smallest_steps(strength) or MAX_STEPS)
    values = {"steps": (steps, run), "cfg_scale": (scale, min(scale, 1.0)), **_sampler(body, sampler)}
    request = parse_request(
        {
            "prompt": body.get("prompt") or "",
            "negative_prompt": body.get("negative_prompt") or None,
            "strength": strength,
            "num_inference_steps": run,
            "guidance_scale": values["cfg_scale"][1],
            # -1 is a random one.
            "seed": None if body.get("seed") in (-1, "-1") else body.get("seed"),
            "fit": fit,
            "output_format": OutputFormat.PNG,
        }
    )
    return EditRequest(
        image=Upload(_image(body), size * rounds),
        requests=with_consecutive_seeds(request, size * rounds),
        taken={
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt or "",
            "seed": body.get("seed", default(WebUIFields, "seed")),
            "batch_size": size,
            "n_iter": rounds,
            "width": IMAGE_SIZE,
            "height": IMAGE_SIZE,
            "denoising_strength": strength,
            **{name: taken for name, (_, taken) in values.items()},
        },
        clamped={name: pair for name, pair in values.items() if pair[0] != pair[1]},
        sampler=sampler,
        model=str(mapping(body, "override_settings").get("sd_model_checkpoint") or "") or None,
        send_images=boolean(body.get("send_images", default(WebUIFields, "send_images")), "send_images"),
    )


def _sampler(body: Mapping[str, Any], sampler: str) -> dict[str, tuple[Any, Any]]:
    """The sent and the taken value of the sampler and of its parameters."""
    own_names = {name.lower() for name in (sampler, *aliases(sampler))}
    values = {"sampler_name": (sampler, sampler)}
    for name in ("sampler_name", "sampler_index"):
        if sent := body.get(name):
            values[name] = (sampler if str(sent).lower() in own_names else sent, sampler)
    for name, own in _OF_THE_SAMPLER.items():
        sent = body.get(name, own)
        if (sent.lower() if isinstance(sent, str) else sent) not in ("", own):
            values[name] = (sent, own)
    return values


def _refuse_unsupported(body: Mapping[str, Any]) -> None:
    for name, neutral in _UNSUPPORTED.items():
        if name in body and body[name] not in neutral:
            raise InvalidParameter(f"{name} cannot be honoured here. Leave it out.", param=name)
    for setting, value in mapping(body, "override_settings").items():
        if setting == "sd_model_checkpoint" or setting.startswith(_SETTINGS_OF_FILES) or value in (None, ""):
            continue
        if value not in _NEUTRAL_SETTINGS.get(setting, ()):
            raise InvalidParameter(
                f"override_settings: {setting[:64]} cannot be honoured here. Leave it out.", param="override_settings"
            )
    for script, arguments in mapping(body, "alwayson_scripts").items():
        if not _switched_off(arguments.get("args") if isinstance(arguments, dict) else arguments):
            raise InvalidParameter(f"alwayson_scripts: there is no '{script[:64]}' here.", param="alwayson_scripts")
    for name in ("width", "height"):
        if parse_integer(body.get(name, IMAGE_SIZE), name, 1) != IMAGE_SIZE:
            raise InvalidParameter(f"{name} can only be {IMAGE_SIZE} here.", param=name)


def _switched_off(arguments: Any) -> bool:
    """Whether an extension is off. Most have a switch as their first argument, or one in each argument."""
    parts = arguments if isinstance(arguments, list) else [arguments]
    return (bool(parts) and parts[0] is False) or all(
        part in (None, False) or (isinstance(part, dict) and part.get("enabled") is False) for part in parts
    )


def _image(body: Mapping[str, Any]) -> bytes:
    images = body.get("init_images")
    if not isinstance(images, list) or len(images) != 1 or not isinstance(images[0], str):
        raise InvalidParameter("Send one image as base64: init_images=[…].", param="init_images")
    return decode_base64(images[0], "init_images")
