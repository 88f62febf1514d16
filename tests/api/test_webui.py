"""`webuiapi`, the web UI's client package, against a real server: unchanged, and what it reads is there."""

import base64
import io
import json
from typing import Any

import httpx2
import pytest
from packaging.version import InvalidVersion, Version
from PIL import Image

from app.infotext import parse_infotext
from tests.support.http import post
from tests.support.images import noise, png, saved, webp_bomb
from tests.support.sdks import webui_client
from tests.support.servers import StartServer

IMAGE = noise((64, 64))
LONG = {"steps": 4, "denoising_strength": 1.0, "seed": 3}


def test_defaults_of_the_package_are_clamped_to_the_model(api: Any, server: str) -> None:
    result = api.img2img(images=[IMAGE], prompt="a wizard", seed=7)
    fields = {"prompt": "a wizard", "seed": "7", "num_inference_steps": "4", "strength": "0.75"}
    alone = post(server, saved(IMAGE, "PNG"), **fields)
    assert (result.image.size, result.image.format) == ((512, 512), "PNG")
    assert result.image.tobytes() == Image.open(io.BytesIO(alone.content)).tobytes()
    assert result.info["clamped"] == {"steps": [20, 4], "cfg_scale": [7.0, 1.0]}
    assert (result.info["seed"], result.info["steps"], result.info["all_seeds"]) == (7, 4, [7])
    assert (result.parameters["steps"], result.parameters["cfg_scale"]) == (4, 1.0)
    assert "init_images" not in result.parameters
    assert result.info["infotexts"][0] == result.image.text["parameters"]


def test_clamped_fields_are_in_a_header(server: str) -> None:
    body = {"init_images": [base64.b64encode(saved(IMAGE, "PNG")).decode()], "prompt": "x", "steps": 30}
    answer = httpx2.post(f"{server}/sdapi/v1/img2img", json=body)
    assert (answer.status_code, answer.headers["x-clamped"]) == (200, "steps")
    body["steps"] = 3
    assert "x-clamped" not in httpx2.post(f"{server}/sdapi/v1/img2img", json=body).headers


def test_several_images_have_consecutive_seeds(api: Any, server: str) -> None:
    result = api.img2img(images=[IMAGE], prompt="x", batch_size=2, n_iter=2, **LONG)
    assert [image.size for image in result.images] == [(512, 512)] * 4
    assert result.info["all_seeds"] == [3, 4, 5, 6]
    assert len(result.info["infotexts"]) == 4


@pytest.mark.parametrize(("mode", "fit"), [(0, "stretch"), (1, "crop"), (2, "pad")])
def test_resize_modes_are_those_of_the_service(api: Any, server: str, mode: int, fit: str) -> None:
    image = noise((90, 40))
    result = api.img2img(images=[image], resize_mode=mode, **LONG)
    fields = {"prompt": "", "seed": "3", "num_inference_steps": "4", "strength": "1", "fit": fit}
    alone = post(server, saved(image, "PNG"), **fields)
    assert result.image.tobytes() == Image.open(io.BytesIO(alone.content)).tobytes()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"mask_image": IMAGE}, "mask"),
        ({"width": 1024}, "width can only be 512"),
        ({"resize_mode": 3}, "resize_mode"),
        ({"batch_size": 11}, "batch_size"),
        ({"batch_size": 0}, "batch_size"),
        ({"script_name": "x/y/z plot"}, "script_name"),
        ({"styles": ["anime"]}, "styles"),
        ({"tiling": True}, "tiling"),
        ({"subseed_strength": 0.5}, "subseed_strength"),
        ({"denoising_strength": 0}, "denoising_strength must be a number from 0.02 to 1."),
        ({"denoising_strength": 0.001}, "denoising_strength must be a number from 0.02"),
        ({"denoising_strength": "a lot"}, "denoising_strength"),
        ({"steps": 0}, "steps must be a whole number from 1 to 150."),
        ({"steps": 151}, "steps must be"),
        ({"steps": 4.5}, "steps must be"),
        ({"cfg_scale": -1}, "cfg_scale must be a number from 0 to 30."),
        ({"cfg_scale": 31}, "cfg_scale must be"),
        ({"seed_resize_from_w": 768}, "seed_resize_from_w"),
        ({"seed_resize_from_h": 768}, "seed_resize_from_h"),
        ({"initial_noise_multiplier": 0.5}, "initial_noise_multiplier"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 2}}, "CLIP_stop_at_last_layers"),
        ({"override_settings": {"sd_vae": "another"}}, "sd_vae"),
        ({"override_settings": {"nonsense": 0}}, "nonsense"),
        ({"images": []}, "init_images"),
        ({"images": [IMAGE, IMAGE]}, "init_images"),
        ({"alwayson_scripts": {"ControlNet": {"args": [{"enabled": True}]}}}, "ControlNet"),
        ({"override_settings": {"sd_model_checkpoint": "other"}}, "other"),
        ({"override_settings": []}, "override_settings"),
        ({"override_settings": {"sd_model_checkpoint": 5}}, "'5'"),
        ({"resize_mode": [1]}, "resize_mode"),
        ({"alwayson_scripts": {"x": {"args": 5}}}, "'x'"),
        ({"alwayson_scripts": {"x": {"args": [0, 5]}}}, "'x'"),
        ({"alwayson_scripts": {"ADetailer": {"args": [True, {"ad_model": "face"}]}}}, "'ADetailer'"),
        ({"alwayson_scripts": {"ControlNet": {"args": [{"enabled": False}, {"module": "canny"}]}}}, "'ControlNet'"),
        ({"alwayson_scripts": {"x": 5}}, "'x'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_unsupported_field_is_refused_by_its_name(api: Any, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        api.img2img(**{"images": [IMAGE], **LONG, **fields})
    status, text = caught.value.args
    assert status in (404, 422)
    assert named in json.loads(text)["detail"]
    assert set(json.loads(text)) == {"error", "detail", "body", "errors"}


def test_disabled_extensions_are_accepted(api: Any) -> None:
    scripts = {
        "ADetailer": {"args": [False, {"ad_model": "face_yolov8n.pt"}]},
        "animatediff": {"args": [False]},
        "ControlNet": {"args": [{"enabled": False, "module": "canny"}, {"enabled": False}]},
        "another": {"args": {"enabled": False}},
        "none": {"args": []},
    }
    assert api.img2img(images=[IMAGE], alwayson_scripts=scripts, **LONG).image


def test_values_within_the_web_ui_s_limits_are_clamped_and_reported(api: Any) -> None:
    result = api.img2img(images=[IMAGE], steps=150, cfg_scale=30, seed=3)
    assert result.info["clamped"] == {"steps": [150, 4], "cfg_scale": [30.0, 1.0]}


def test_sampler_fields_are_ignored_and_not_echoed(
    api: Any,
) -> None:
    plain = api.img2img(images=[IMAGE], cfg_scale=1, **LONG)
    own = {"scheduler": "Automatic", "eta": 1.0, "s_churn": 0, "s_tmax": 0, "s_tmin": 0, "s_noise": 1}
    assert api.img2img(images=[IMAGE], cfg_scale=1, **own, **LONG).info["clamped"] == {}
    other = {"scheduler": "Karras", "eta": 0.5, "s_churn": 1, "s_tmax": 2, "s_tmin": 3, "s_noise": 4}
    result = api.img2img(images=[IMAGE], cfg_scale=1, sampler_name="DDIM", sampler_index="DDIM", **other, **LONG)
    clamped = {name: sent for name, (sent, _) in result.info["clamped"].items()}
    assert clamped == {"sampler_name": "DDIM", "sampler_index": "DDIM", **other}
    assert {name: result.parameters[name] for name in clamped} == {
        "sampler_name": "Euler a",
        "sampler_index": "Euler a",
        "scheduler": "automatic",
        "eta": 1.0,
        "s_churn": 0.0,
        "s_tmax": 0.0,
        "s_tmin": 0.0,
        "s_noise": 1.0,
    }
    assert result.image.tobytes() == plain.image.tobytes()


def test_settings_without_effect_on_the_image_are_accepted(api: Any) -> None:
    settings = {"CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic", "samples_format": "jpg", "nothing": None}
    assert api.img2img(images=[IMAGE], override_settings=settings, **LONG).image


def test_null_is_the_same_as_an_absent_field(server: str) -> None:
    body = {"init_images": [base64.b64encode(saved(IMAGE, "PNG")).decode()], "prompt": "x", "seed": 3}
    names = ("denoising_strength", "width", "height", "batch_size", "n_iter", "resize_mode", "steps", "cfg_scale")
    nulls = dict.fromkeys((*names, "sampler_name", "override_settings", "alwayson_scripts", "mask", "eta"))
    with_nulls, without = (
        httpx2.post(f"{server}/sdapi/v1/img2img", json=sent).json() for sent in ({**body, **nulls}, body)
    )
    assert with_nulls["images"] == without["images"]
    assert json.loads(with_nulls["info"])["denoising_strength"] == 0.75
    assert with_nulls["parameters"]["denoising_strength"] == 0.75


def test_headers_are_those_of_the_native_route(server: str) -> None:
    body = {"init_images": [base64.b64encode(saved(IMAGE, "PNG")).decode()], "prompt": "word " * 100, **LONG}
    one = httpx2.post(f"{server}/sdapi/v1/img2img", json=body).headers
    assert (one["x-seed"], one["x-steps-run"], one["x-prompt-tokens-cut"]) == ("3", "4", "25")
    assert "png;dur=" in one["server-timing"]
    two = httpx2.post(f"{server}/sdapi/v1/img2img", json={**body, "batch_size": 2}).headers
    assert (two["x-steps-run"], two["x-start-timestep"], two["x-prompt-tokens-cut"]) == ("4", "999", "25")
    assert "x-seed" not in two


def test_more_images_than_the_queue_holds_are_refused(start_server: StartServer) -> None:
    with start_server(queue_size=2) as url, pytest.raises(RuntimeError, match="batch_size: 3 images at once"):
        webui_client(url).img2img(images=[IMAGE], batch_size=3, **LONG)


def test_images_can_be_left_out(api: Any) -> None:
    assert api.img2img(images=[IMAGE], send_images=False, **LONG).images == []


def test_png_info_reads_the_parameters(api: Any) -> None:
    made = api.img2img(images=[IMAGE], prompt="a wizard, blue", negative_prompt="red", **LONG).image
    read = api.png_info(made)
    assert read.info.startswith("a wizard, blue\nNegative prompt: red\nSteps: 4, ")
    assert read.parameters["Seed"] == "3"
    assert read.parameters["Prompt"] == "a wizard, blue"
    assert api.png_info(IMAGE).info == ""


@pytest.mark.parametrize("file_format", ["webp", "jpeg", "png"])
def test_png_info_reads_other_formats_too(server: str, file_format: str) -> None:
    made = post(server, saved(IMAGE, "PNG"), prompt="größer ✨", output_format=file_format, seed="9").content
    body = {"image": f"data:image/{file_format};base64,{base64.b64encode(made).decode()}"}
    read = httpx2.post(f"{server}/sdapi/v1/png-info", json=body).json()
    assert read["parameters"]["Prompt"] == "größer ✨"
    assert read["parameters"]["Seed"] == "9"


def test_png_info_of_an_unreadable_file_is_empty(server: str) -> None:
    for image in ("R0lGODlh", "!", 5):
        answer = httpx2.post(f"{server}/sdapi/v1/png-info", json={"image": image})
        assert answer.status_code in (415, 422)


@pytest.mark.parametrize(
    "upload", [png((20_000, 20_000), 8, 2, b""), webp_bomb(b"VP8X", (16_000, 16_000))], ids=["png", "webp"]
)
def test_png_info_of_a_too_large_file_is_refused(server: str, upload: bytes) -> None:
    answer = httpx2.post(f"{server}/sdapi/v1/png-info", json={"image": base64.b64encode(upload).decode()})
    assert (answer.status_code, answer.json()["error"]) == (413, "image_too_large")
    assert "Send a smaller image" in answer.json()["detail"]


def test_model_sampler_and_options_are_listed(api: Any) -> None:
    name = api.util_get_model_names()[0]
    assert api.util_get_current_model() == name
    api.set_options({"sd_model_checkpoint": name})
    for options in ({"sd_model_checkpoint": "other"}, {"CLIP_stop_at_last_layers": 2}):
        answer = httpx2.post(f"{api.baseurl}/options", json=options)
        assert answer.status_code in (404, 422)
    assert api.util_get_sampler_names() == ["Euler a"]
    assert api.util_get_scheduler_names()
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    for nothing in (api.get_upscalers, api.get_loras, api.get_sd_vae, api.get_face_restorers, api.get_prompt_styles):
        assert nothing() == []
    assert api.get_cmd_flags() == {}
    api.util_wait_for_ready(check_interval=0.1)


def test_options_can_be_sent_back_as_received(api: Any) -> None:
    options = {**api.get_options(), "sd_model_checkpoint": None, "CLIP_stop_at_last_layers": None}
    assert httpx2.post(f"{api.baseurl}/options", json=options).status_code == 200
    answer = httpx2.post(f"{api.baseurl}/options", json={**options, "samples_format": "jpg"})
    assert (answer.status_code, "samples_format" in answer.json()["detail"]) == (422, True)


def test_further_routes_of_its_clients_answer(api: Any) -> None:
    assert api.get_memory()["cuda"]["error"]
    assert api.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert api.refresh_checkpoints() is None
    assert api.get_realesrgan_models() == []


@pytest.mark.parametrize("path", ["progress?skip_current_image=maybe", "txt2img"])
def test_each_error_has_its_four_fields(server: str, path: str) -> None:
    answer = httpx2.get(f"{server}/sdapi/v1/{path}")
    assert answer.json().keys() == {"error", "detail", "body", "errors"}
    assert answer.headers["x-error-message"] == answer.json()["detail"]


def test_txt2img_is_refused_and_names_img2img(server: str) -> None:
    answer = httpx2.post(f"{server}/sdapi/v1/txt2img", json={"prompt": "x"})
    assert (answer.status_code, "POST /sdapi/v1/img2img" in answer.json()["detail"]) == (404, True)


def test_numbers_and_booleans_may_be_texts(server: str) -> None:
    def ask(**fields: Any) -> dict[str, Any]:
        body = {"init_images": [base64.b64encode(saved(IMAGE, "PNG")).decode()], "prompt": "x", **fields}
        answer = httpx2.post(f"{server}/sdapi/v1/img2img", json=body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    parameters = ask(width="512", height=512, seed="-1", send_images="false", sampler_name="k_euler_a")["parameters"]
    assert (parameters["width"], parameters["sampler_name"], parameters["n_iter"]) == (512, "Euler a", 1)
    assert ask(send_images=0)["images"] == []
    assert json.loads(ask(sampler_name="K_Euler_A")["info"])["clamped"] == {}
    assert json.loads(ask(batch_size=2, n_iter=3)["info"])["batch_size"] == 2


def test_sampler_is_that_of_the_model(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with start_server("tests.support.fakes:lightning") as url:
        api = webui_client(url)
        assert api.util_get_sampler_names() == ["Euler"]
        result = api.img2img(images=[IMAGE], prompt="x", sampler_name="Euler a")
        assert result.info["clamped"]["sampler_name"] == ["Euler a", "Euler"]
        assert "Sampler: Euler, " in result.info["infotexts"][0]


def test_version_is_not_taken_for_one_of_the_web_ui(api: Any) -> None:
    # It then goes back to how it drew in those days, by what its own reading of versions says.
    with pytest.raises(InvalidVersion):
        Version(parse_infotext(api.img2img(images=[IMAGE], prompt="x").info["infotexts"][0])["Version"])


def test_password_is_the_api_key(start_server: StartServer) -> None:
    with start_server(api_keys="right") as url:
        api = webui_client(url)
        with pytest.raises(RuntimeError) as caught:
            api.img2img(images=[IMAGE], **LONG)
        assert caught.value.args[0] == 401
        api.set_auth("anybody", "right")
        assert api.img2img(images=[IMAGE], **LONG).image


def test_random_seed_is_returned(api: Any) -> None:
    seeds = {api.img2img(images=[IMAGE], steps=1, denoising_strength=1.0).info["seed"] for _ in range(3)}
    assert len(seeds) == 3


def test_lenient_json_and_utf_8_are_accepted(server: str) -> None:
    image = base64.b64encode(saved(IMAGE, "PNG")).decode()
    body = f'{{"init_images": ["{image}"], "eta": NaN, "comment": "\\ud800", "steps": 2}}'
    answer = httpx2.post(f"{server}/sdapi/v1/img2img", content=body)
    assert answer.status_code == 200
    assert answer.json()["parameters"]["comment"] == "\ud800"


def test_body_that_is_not_an_object_is_refused(server: str) -> None:
    for body in (b"[]", b"{", b""):
        answer = httpx2.post(f"{server}/sdapi/v1/img2img", content=body)
        assert (answer.status_code, answer.json()["error"]) == (400, "malformed_body")
    form = httpx2.post(f"{server}/sdapi/v1/img2img", data={"prompt": "x"})
    assert form.json()["detail"] == (
        "The body is not valid JSON; its Content-Type is application/x-www-form-urlencoded. "
        "Send a JSON object, {…}, as application/json."
    )
