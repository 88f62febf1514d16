"""`POST /img2img` of a real server: three kinds of body in, a picture or a problem out."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from tests.support.http import post, problem
from tests.support.pages import read, tables
from tests.support.servers import StartServer


def opened(response: httpx2.Response) -> Image.Image:
    assert response.status_code == 200, response.text
    return Image.open(io.BytesIO(response.content))


def test_form_becomes_a_512_pixel_png_with_its_headers(server: str, png: bytes) -> None:
    response = post(server, png, seed="42")
    image = opened(response)
    assert (image.format, image.size, image.mode) == ("PNG", (512, 512), "RGB")
    headers = response.headers
    assert headers["content-type"] == "image/png"
    assert headers["content-length"] == str(len(response.content))
    assert headers["content-disposition"] == 'inline; filename="img2img-42.png"'
    assert (headers["x-seed"], headers["x-steps-run"], headers["x-start-timestep"]) == ("42", "3", "999")
    assert re.fullmatch(r"[0-9a-f]{32}", headers["x-request-id"])
    stages = re.findall(r"(\w+);dur=[0-9.]+", headers["server-timing"])
    assert stages == ["decode", "queue", "encode_prompt", "encode_image", "denoise", "vae", "png"]
    assert "x-prompt-tokens-cut" not in headers


def test_same_seed_gives_same_bytes_and_random_seed_is_sent(server: str, png: bytes) -> None:
    first = post(server, png)
    again = post(server, png, seed=first.headers["x-seed"])
    assert again.content == first.content
    assert post(server, png).headers["x-seed"] != first.headers["x-seed"]


def test_cut_prompt_is_reported(server: str, png: bytes) -> None:
    assert post(server, png, prompt="word " * 100).headers["x-prompt-tokens-cut"] == "25"


def test_file_holds_parameters_unless_switched_off(server: str, png: bytes, start_server: StartServer) -> None:
    assert "Seed: 7" in opened(post(server, png, seed="7")).info["parameters"]
    with start_server(embed_parameters=False) as url:
        assert "parameters" not in opened(post(url, png, seed="7")).info


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_format_is_chosen_by_field_or_accept_header(server: str, png: bytes, output_format: str) -> None:
    by_field = post(server, png, accept="image/png", output_format=output_format, seed="1")
    by_accept = post(server, png, accept=f"text/html, image/{output_format};q=0.9, image/*;q=0.1", seed="1")
    for response in (by_field, by_accept):
        assert opened(response).format == output_format.upper()
        assert response.headers["content-type"] == f"image/{output_format}"
        assert response.headers["content-disposition"].endswith(f'.{output_format}"')
        assert f"{output_format};dur=" in response.headers["server-timing"]


def test_quality_applies_to_webp_and_jpeg_only(server: str, png: bytes) -> None:
    sizes = [
        len(post(server, png, output_format="webp", quality=quality, seed="1").content) for quality in ("10", "95")
    ]
    assert sizes[0] < sizes[1] / 2
    problem(post(server, png, quality="50"), 422, "invalid_parameter", "quality")
    problem(post(server, png, output_format="jpeg", quality="0"), 422, "invalid_parameter", "quality")


def test_fit_changes_the_image(server: str) -> None:
    buffer = io.BytesIO()
    Image.linear_gradient("L").rotate(90).resize((300, 100)).save(buffer, "PNG")
    results = {fit: post(server, buffer.getvalue(), seed="1", fit=fit).content for fit in ("stretch", "crop", "pad")}
    assert len(set(results.values())) == 3


def test_raw_image_with_query_fields_is_the_same_request(server: str, png: bytes) -> None:
    raw = httpx2.post(
        f"{server}/img2img",
        params={"prompt": "dog wizard", "seed": "3"},
        content=png,
        headers={"Content-Type": "image/png"},
    )
    assert raw.content == post(server, png, seed="3").content


def test_sagemaker_route_takes_every_kind_of_body(server: str, png: bytes) -> None:
    url, wanted = f"{server}/invocations", post(server, png, seed="3").content
    form = {"prompt": "dog wizard", "seed": "3"}
    body = {"inputs": base64.b64encode(png).decode(), "parameters": form}
    assert httpx2.post(url, data=form, files={"image": png}).content == wanted
    assert httpx2.post(url, params=form, content=png, headers={"Content-Type": "image/png"}).content == wanted
    assert httpx2.post(url, json=body).content == wanted
    problem(
        httpx2.post(url, data=form | {"strength": "0.1"}, files={"image": png}), 422, "invalid_parameter", "strength"
    )


def test_raw_image_needs_neither_prompt_nor_exact_type(server: str, png: bytes) -> None:
    for media_type in ("image/jpeg", "application/octet-stream"):
        response = httpx2.post(f"{server}/img2img", content=png, headers={"Content-Type": media_type})
        assert opened(response).size == (512, 512)


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_hugging_face_json_is_the_same_request(server: str, png: bytes, prefix: str) -> None:
    body = {
        "inputs": prefix + base64.b64encode(png).decode(),
        "parameters": {
            "prompt": "dog wizard",
            "negative_prompt": None,
            "num_inference_steps": 4,
            "strength": 0.9,
            "seed": 3,
            "target_size": {"width": 512, "height": 512},
        },
    }
    assert httpx2.post(f"{server}/img2img", json=body).content == post(server, png, seed="3").content


def test_hugging_face_base64_in_lines_and_nulls_are_accepted(server: str, png: bytes) -> None:
    body = {"inputs": base64.encodebytes(png).decode(), "parameters": {"prompt": None, "seed": 5}}
    answer = httpx2.post(f"{server}/img2img", json=body)
    assert (answer.status_code, answer.headers["x-seed"]) == (200, "5")


def test_hugging_face_client_edits_an_image(server: str, png: bytes) -> None:
    from huggingface_hub import InferenceClient

    client = InferenceClient(model=f"{server}/img2img")
    plain = client.image_to_image(png)
    asked = client.image_to_image(png, prompt="dog wizard", num_inference_steps=2, strength=0.5, seed=3)
    assert plain.size == asked.size == (512, 512)
    assert asked.tobytes() == opened(post(server, png, num_inference_steps="2", strength="0.5", seed="3")).tobytes()


def test_hugging_face_client_shows_the_error_message(server: str, png: bytes) -> None:
    from huggingface_hub import InferenceClient
    from huggingface_hub.errors import HfHubHTTPError

    with pytest.raises(HfHubHTTPError, match=r"strength of at least 0\.25"):
        InferenceClient(model=f"{server}/img2img").image_to_image(png, prompt="x", strength=0.1)


def test_too_few_steps_are_refused_with_advice(server: str, png: bytes) -> None:
    detail = problem(post(server, png, strength="0.2"), 422, "invalid_parameter", "strength")
    assert "at least 0.25" in detail
    assert "at least 5 steps" in detail


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"num_inference_steps": "4_0"}, "num_inference_steps"),
        ({"strength": "nan"}, "strength"),
        ({"strenght": "0.5"}, "strenght"),
        ({"prompt": ["a", "b"]}, "prompt"),
    ],
)
def test_invalid_field_is_named(server: str, png: bytes, fields: dict[str, Any], param: str) -> None:
    problem(post(server, png, **fields), 422, "invalid_parameter", param)


def test_unknown_field_lists_the_fields_of_the_docs(server: str, png: bytes) -> None:
    documented = [row[0].strip("`") for row in tables(read("docs/parameters.md"))[0]]
    body = {"inputs": base64.b64encode(png).decode(), "parameters": {"qqqq": 1}}
    answers = {
        ("image",): post(server, png, qqqq="1"),
        ("target_size",): httpx2.post(f"{server}/img2img", json=body),
        (): httpx2.post(f"{server}/img2img?qqqq=1", content=png, headers={"Content-Type": "image/png"}),
    }
    for besides, answer in answers.items():
        _, _, known = problem(answer, 422, "invalid_parameter", "qqqq").partition("Known fields: ")
        assert sorted(known.removesuffix(".").split(", ")) == sorted({*documented} - {"image"} | {*besides})


def test_query_not_in_utf_8_is_refused(server: str, png: bytes) -> None:
    answer = httpx2.post(f"{server}/img2img?prompt=caf%e9", content=png, headers={"Content-Type": "image/png"})
    assert "UTF-8" in problem(answer, 422, "invalid_parameter")


def test_field_in_form_and_query_is_refused(server: str, png: bytes) -> None:
    files, data = {"image": png}, {"prompt": "x", "seed": "1"}
    response = httpx2.post(f"{server}/img2img?seed=2", files=files, data=data)
    assert "more than once" in problem(response, 422, "invalid_parameter", "seed")


def test_form_without_image_or_prompt_names_the_missing_part(server: str, png: bytes) -> None:
    url = f"{server}/img2img"
    no_image = httpx2.post(url, files={"other": png}, data={"prompt": "x"})
    assert "file part named 'image'" in problem(no_image, 422, "invalid_parameter", "image")
    as_text = httpx2.post(url, files={"image": (None, "text")}, data={"prompt": "x"})
    problem(as_text, 422, "invalid_parameter", "image")
    no_prompt = httpx2.post(url, files={"image": png})
    problem(no_prompt, 422, "invalid_parameter", "prompt")


def test_large_upload_is_not_written_to_disk(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither has the container's read-only root a place for it, nor should a caller's picture lie about."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "there is no such folder"))
    buffer = io.BytesIO()
    Image.effect_noise((1500, 1500), 100).save(buffer, "PNG")
    assert len(buffer.getvalue()) > 1.5 * 2**20
    assert opened(post(server, buffer.getvalue())).size == (512, 512)


def test_second_file_is_refused(server: str, png: bytes) -> None:
    two = httpx2.post(f"{server}/img2img", files=[("image", png), ("image", png)], data={"prompt": "x"})
    assert "Send one image" in problem(two, 400, "malformed_body")


def test_image_as_long_text_is_refused_with_advice(server: str, png: bytes) -> None:
    text = base64.b64encode(png * 20).decode()
    body = httpx2.post(f"{server}/img2img", files={"prompt": (None, "x"), "image": (None, text * 20)})
    assert "a file part named 'image'" in problem(body, 400, "malformed_body", "image")


def test_prompt_longer_than_a_text_part_is_refused(server: str, png: bytes) -> None:
    detail = problem(post(server, png, prompt="x" * 65_537), 400, "malformed_body", "prompt")
    assert detail == (
        "The text of the part 'prompt' is longer than the 64 KiB that a text part may have. Send a shorter one."
    )


def test_prompt_as_a_file_is_refused(server: str) -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="prompt"; filename="p.txt"\r\n\r\nx\r\n'
        b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n--b--\r\n'
    )
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    problem(httpx2.post(f"{server}/img2img", content=body, headers=headers), 422, "invalid_parameter", "image")


def test_form_without_a_boundary_is_refused(server: str) -> None:
    response = httpx2.post(f"{server}/img2img", content=b"x", headers={"Content-Type": "multipart/form-data"})
    assert problem(response, 400, "malformed_body") == (
        "The Content-Type of the form has no boundary. Let the HTTP library set this header, which names one."
    )


def test_incomplete_form_is_refused(server: str, png: bytes) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + png[:100]
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    response = httpx2.post(f"{server}/img2img", content=body, headers=headers)
    assert "cut short" in problem(response, 400, "malformed_body")


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b"[" * 100_000, b'{"inputs": 1e999999999}', b'{"inputs": ' + b"9" * 5000 + b"}", b"\xff"],
    ids=["empty", "list", "open", "deep", "infinite", "long number", "no text"],
)
def test_invalid_json_is_refused(server: str, body: bytes) -> None:
    response = httpx2.post(f"{server}/img2img", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 422)
    assert response.json()["detail"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"inputs": 5}, "inputs"),
        ({"inputs": "AAAA", "parameters": []}, None),
        ({"inputs": "AAAA", "parameters": [1]}, "parameters"),
        ({"inputs": "AAAA", "options": {}}, "options"),
        ({"inputs": "AAAA", "parameters": {"target_size": {"width": 1024, "height": 1024}}}, "target_size"),
        ({"inputs": "AAAA", "parameters": {"scheduler": "x"}}, "scheduler"),
        ({"inputs": "no base64!"}, "inputs"),
    ],
)
def test_json_of_another_shape_is_refused(server: str, body: Any, param: str | None) -> None:
    response = httpx2.post(f"{server}/img2img", json=body)
    assert response.status_code in (415, 422)
    assert param is None or response.json()["param"] == param


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded"])
def test_other_content_type_is_refused(server: str, media_type: str) -> None:
    response = httpx2.post(f"{server}/img2img", content=b"x", headers={"Content-Type": media_type})
    assert "multipart/form-data" in problem(response, 415, "unsupported_media_type")


def test_empty_accept_header_admits_all_formats(server: str, png: bytes) -> None:
    assert opened(post(server, png, accept="")).format == "PNG"


def test_accept_header_without_a_known_format_is_refused(server: str, png: bytes) -> None:
    problem(post(server, png, accept="application/json"), 406, "not_acceptable", "Accept")


def test_events_with_weight_0_are_not_sent(server: str, png: bytes) -> None:
    answer = post(server, png, accept="text/event-stream;q=0, image/webp")
    assert answer.headers["content-type"] == "image/webp"


@pytest.mark.parametrize("url", ["data:image/png,abc", "data:image/png;base64", "data:;base64x,AAAA", "no base64!"])
def test_invalid_base64_is_refused_with_advice(server: str, url: str) -> None:
    answer = httpx2.post(f"{server}/img2img", json={"inputs": url})
    assert "data:image/png;base64,…" in problem(answer, 422, "invalid_image", "inputs")


def test_data_url_in_capitals_is_accepted(server: str, png: bytes) -> None:
    url = f"DATA:image/png;BASE64,{base64.b64encode(png).decode()}"
    answer = httpx2.post(f"{server}/img2img", json={"inputs": url, "parameters": {"seed": 1, "prompt": "dog wizard"}})
    assert answer.content == post(server, png, seed="1").content


@pytest.mark.parametrize(
    ("upload", "status", "code"),
    [
        (b"", 422, "invalid_image"),
        (b"GIF89a" + bytes(50), 415, "unsupported_image_format"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), 422, "invalid_image"),
    ],
)
def test_unreadable_image_is_refused(server: str, upload: bytes, status: int, code: str) -> None:
    problem(post(server, upload), status, code, "image")


def test_image_of_too_many_pixels_is_refused(png: bytes, start_server: StartServer) -> None:
    with start_server(max_image_pixels=512 * 512 - 1) as url:
        problem(post(url, png), 413, "image_too_large", "image")


def test_failed_job_is_500_without_retry(server: str, png: bytes) -> None:
    response = post(server, png, prompt="fail_at=1")
    detail = problem(response, 500, "inference_failed")
    assert "as requested" not in detail
    assert response.headers["x-should-retry"] == "false"


def test_unexpected_error_reveals_only_the_request_id(
    png: bytes, start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> str:
        raise RuntimeError("a secret of the inside")

    monkeypatch.setattr("app.service.infotext", fail)
    with start_server() as url:
        response = post(url, png)
    assert "secret" not in problem(response, 500, "internal_error")


def test_nan_in_the_result_is_an_error(server: str, png: bytes) -> None:
    problem(post(server, png, prompt="finish=nan"), 500, "non_finite_result")
