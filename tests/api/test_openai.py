"""OpenAI's own SDK against a real server: what it sends is taken, and what it reads is there."""

import asyncio
import base64
import io
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from PIL import Image

from tests.support.http import post
from tests.support.images import opened
from tests.support.sdks import openai_client
from tests.support.servers import StartServer

PROMPT = "a wizard"


def decoded(datum: Any) -> Image.Image:
    return opened(base64.b64decode(datum.b64_json))


def test_edit_gives_the_image_of_the_native_route(client: openai.OpenAI, server: str, png: bytes) -> None:
    answer = client.images.edit(
        image=png, prompt=PROMPT, extra_body={"strength": 0.5, "seed": 7, "num_inference_steps": 6, "fit": "crop"}
    )
    fields = {"prompt": PROMPT, "strength": "0.5", "seed": "7", "num_inference_steps": "6", "fit": "crop"}
    assert answer.data
    assert base64.b64decode(str(answer.data[0].b64_json)) == post(server, png, **fields).content
    assert (answer.size, answer.output_format, answer.background) == ("512x512", "png", "opaque")
    assert answer._request_id


@pytest.mark.parametrize("how", ["bytes", "handle", "list", "tuple"])
def test_image_can_be_sent_in_each_way_of_the_sdk(client: openai.OpenAI, png: bytes, tmp_path: Path, how: str) -> None:
    (tmp_path / "in.png").write_bytes(png)
    with (tmp_path / "in.png").open("rb") as handle:
        image: Any = {"bytes": png, "handle": handle, "list": [handle], "tuple": ("a.png", png, "image/png")}[how]
        answer = client.images.edit(image=image, prompt=PROMPT)
    assert answer.data
    assert decoded(answer.data[0]).size == (512, 512)


def test_several_images_have_consecutive_seeds(client: openai.OpenAI, server: str, png: bytes) -> None:
    answer = client.images.edit(image=png, prompt=PROMPT, n=3, extra_body={"seed": 40})
    assert answer.data
    assert [datum.seed for datum in answer.data] == [40, 41, 42]  # type: ignore[attr-defined]
    singles = [post(server, png, prompt=PROMPT, seed=str(seed)).content for seed in (40, 41, 42)]
    assert [base64.b64decode(str(datum.b64_json)) for datum in answer.data] == singles


def test_hints_are_ignored_and_the_format_is_honoured(client: openai.OpenAI, png: bytes) -> None:
    hints: dict[str, Any] = {"user": "me", "quality": "high", "background": "opaque", "input_fidelity": "high"}
    sizes = []
    for compression in (20, 100):
        answer = client.images.edit(
            image=png, prompt=PROMPT, size="512x512", output_format="webp", output_compression=compression, **hints
        )
        assert answer.data
        assert decoded(answer.data[0]).format == "WEBP"
        sizes.append(len(str(answer.data[0].b64_json)))
    assert sizes[0] < sizes[1]
    assert answer.output_format == "webp"


def test_compression_of_100_is_the_best_quality(client: openai.OpenAI, server: str, png: bytes) -> None:
    for output_format in ("webp", "jpeg"):
        fields: dict[str, Any] = {"output_format": output_format, "extra_body": {"seed": 7}}
        best = client.images.edit(image=png, prompt=PROMPT, output_compression=100, **fields)
        absent = client.images.edit(image=png, prompt=PROMPT, **fields)
        assert best.data
        assert absent.data
        for datum, quality in ((best.data[0], {"quality": "100"}), (absent.data[0], {})):
            alone = post(server, png, prompt=PROMPT, seed="7", output_format=output_format, **quality)
            assert base64.b64decode(str(datum.b64_json)) == alone.content
    assert client.images.edit(image=png, prompt=PROMPT, output_compression=100, output_format="png").data


def test_headers_are_those_of_the_native_route(client: openai.OpenAI, png: bytes) -> None:
    ask, words = client.images.with_raw_response.edit, "word " * 100
    one = ask(image=png, prompt=words, extra_body={"seed": 7}).headers
    assert (one["x-seed"], one["x-steps-run"], one["x-prompt-tokens-cut"]) == ("7", "3", "25")
    assert "png;dur=" in one["server-timing"]
    two = ask(image=png, prompt=words, n=2).headers
    assert (two["x-steps-run"], two["x-prompt-tokens-cut"]) == ("3", "25")
    assert "x-seed" not in two
    (event,) = client.images.edit(image=png, prompt=words, stream=True)
    assert event.tokens_cut == 25  # type: ignore[union-attr]


def test_more_images_than_the_queue_holds_are_not_retried(start_server: StartServer, png: bytes) -> None:
    with start_server(queue_size=2) as url, openai_client(url) as client:
        assert client.images.edit(image=png, prompt=PROMPT, n=2).data
        with pytest.raises(
            openai.BadRequestError, match="n: 3 images at once are more than may wait here: 2"
        ) as caught:
            client.images.edit(image=png, prompt=PROMPT, n=3)
    assert caught.value.param == "n"


def test_url_is_a_data_url(client: openai.OpenAI, png: bytes) -> None:
    answer = client.images.edit(image=png, prompt=PROMPT, response_format="url")
    assert answer.data
    head, _, data = str(answer.data[0].url).partition(",")
    assert head == "data:image/png;base64"
    assert opened(base64.b64decode(data)).size == (512, 512)


def test_variation_needs_no_prompt(client: openai.OpenAI, png: bytes) -> None:
    with pytest.warns(DeprecationWarning, match="deprecated"):
        answer = client.images.create_variation(image=png, n=2)
    assert answer.data
    assert len(answer.data) == 2


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"size": "1024x1024"}, "size"),
        ({"background": "transparent"}, "background"),
        ({"n": 11}, "n"),
        ({"n": 0}, "n"),
        ({"partial_images": 2}, "partial_images"),
        ({"output_compression": 50}, "output_compression"),
        ({"output_format": "gif"}, "output_format"),
        ({"response_format": "hologram"}, "response_format"),
        ({"extra_body": {"strength": 0.1}}, "strength"),
        ({"extra_body": {"strenght": 1}}, "strenght"),
        ({"extra_body": {"n": "two"}}, "n"),
        ({"extra_body": {"stream": "maybe"}}, "stream"),
        ({"stream": True, "response_format": "url"}, "response_format"),
    ],
)
def test_unsupported_field_is_refused_by_its_name(
    client: openai.OpenAI, png: bytes, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(image=png, prompt=PROMPT, **fields)
    assert (caught.value.param, caught.value.code, caught.value.type) == (
        *(param, "invalid_parameter"),
        "invalid_request_error",
    )
    assert caught.value.request_id


def test_mask_or_second_image_is_refused(client: openai.OpenAI, png: bytes) -> None:
    with pytest.raises(openai.BadRequestError, match="mask") as caught:
        client.images.edit(image=png, mask=png, prompt=PROMPT)
    assert caught.value.param == "mask"
    with pytest.raises(openai.BadRequestError, match="Send one image") as caught:
        client.images.edit(image=[png, png], prompt=PROMPT)
    assert caught.value.param == "image"
    with pytest.raises(openai.BadRequestError, match="one image"):
        client.images.edit(image=png, prompt=PROMPT, extra_body={"stream": True, "n": 2})


def test_second_image_under_another_name_is_refused(server: str, png: bytes) -> None:
    answer = httpx2.post(
        f"{server}/v1/images/edits", files={"image": png, "image[]": ("a.png", png)}, data={"prompt": PROMPT}
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "image")


@pytest.mark.parametrize("name", ["mask_image", "control"])
def test_file_of_another_format_is_refused_by_its_name(server: str, png: bytes, name: str) -> None:
    answer = httpx2.post(
        f"{server}/v1/images/edits", files={"image": png, name: ("a.png", png)}, data={"prompt": PROMPT}
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)


def test_field_in_the_query_is_refused(client: openai.OpenAI, png: bytes) -> None:
    with pytest.raises(openai.BadRequestError, match="from the body here, not from the query") as caught:
        client.images.edit(image=png, prompt=PROMPT, extra_query={"seed": "7"})
    assert caught.value.param == "seed"
    # As some clients do for Azure.
    assert client.images.edit(image=png, prompt=PROMPT, extra_query={"api-version": "2025-04-01"}).data


def test_misspelled_field_gets_a_suggestion(client: openai.OpenAI, png: bytes) -> None:
    with pytest.raises(openai.BadRequestError, match="did you mean 'partial_images'"):
        client.images.edit(image=png, prompt=PROMPT, extra_body={"partial_image": "1"})


def test_malformed_image_is_a_bad_request(client: openai.OpenAI) -> None:
    for data in (b"", b"GIF89a"):
        with pytest.raises(openai.BadRequestError) as caught:
            client.images.edit(image=data, prompt=PROMPT)
        assert caught.value.param == "image"


@pytest.mark.parametrize("extra", [{}, {"size": "512x512", "num_inference_steps": "4", "guidance_scale": "1.0"}])
def test_load_generator_gets_its_images(server: str, extra: dict[str, str]) -> None:
    """What NVIDIA's AIPerf 0.13 sends for `--endpoint-type image_edit`, and with the options that its guide names."""
    headers = {
        "User-Agent": "aiperf/0.13.0",
        "X-Request-ID": "d191cfd0-9e11-40fc-8bb4-204da4466e50",
        "X-Correlation-ID": "4ae10b4f-daa5-42ff-b7b4-51f7d584b22b",
        "X-Session-Affinity": "4ae10b4f-daa5-42ff-b7b4-51f7d584b22b",
        "Accept": "application/json",
    }
    (model,) = httpx2.get(f"{server}/v1/models").json()["data"]
    # By default its prompts have 550 tokens, and its pictures are noise.
    fields = {"prompt": "old body for heaven " * 137, "model": model["id"], "response_format": "b64_json", "n": "1"}
    picture = io.BytesIO()
    Image.effect_noise((512, 512), 100).convert("RGB").save(picture, "JPEG")
    files = {"image": ("image.jpg", picture.getvalue(), "image/jpeg")}
    answer = httpx2.post(f"{server}/v1/images/edits", data={**fields, **extra}, files=files, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-request-id"] == headers["X-Request-ID"]
    (datum,) = answer.json()["data"]
    assert opened(base64.b64decode(datum["b64_json"])).size == (512, 512)


def test_url_in_place_of_an_image_is_refused(server: str) -> None:
    """AIPerf sends it where its input file has one, in a form without a file."""
    form = {"prompt": (None, "x"), "model": (None, "*"), "n": (None, "1"), "url": (None, "https://example.com/a.png")}
    answer = httpx2.post(f"{server}/v1/images/edits", files=form)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "url")


def test_body_that_is_not_a_form_is_a_bad_request(server: str) -> None:
    answer = httpx2.post(f"{server}/v1/images/edits", json={"prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_media_type")


def test_prompt_must_be_sent_once(server: str, png: bytes) -> None:
    for data in ({}, {"prompt": ["a wizard", "a dog"]}):
        answer = httpx2.post(f"{server}/v1/images/edits", files={"image": png}, data=data)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


def test_model_is_listed_and_found_by_name_and_alias(
    client: openai.OpenAI, start_server: StartServer, png: bytes
) -> None:
    (model,) = client.models.list()
    assert client.models.retrieve(model.id).id == model.id
    assert client.images.edit(image=png, prompt=PROMPT, model=model.id).data
    for ask, advice in (
        (lambda: client.models.retrieve("gpt-image-1"), f"Put '{model.id}' in the path, or"),
        (lambda: _edit(client, png, "gpt-image-1"), f"Leave it out, send '{model.id}', or"),
    ):
        with pytest.raises(openai.NotFoundError, match=advice) as caught:
            ask()
        assert caught.value.code == "model_not_found"
    for aliases, name in (("gpt-image-1, dall-e-2 ,", "dall-e-2"), (" * ", "whatever")):
        with start_server(model_aliases=aliases) as url, openai_client(url) as other:
            assert _edit(other, png, name).data
            assert other.models.retrieve(name).id == name
            no_name(url, png)


def test_empty_model_name_is_not_found(server: str, png: bytes) -> None:
    no_name(server, png)


def no_name(url: str, png: bytes) -> None:
    form = {"files": {"image": png}, "data": {"prompt": "", "model": ""}}
    for answer in (httpx2.get(f"{url}/v1/models/"), httpx2.post(f"{url}/v1/images/edits", **form)):  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_model_is_unavailable_before_one_is_loaded(start_server: StartServer) -> None:
    with start_server("tests.support.fakes:hang", wait=False) as url, openai_client(url) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            client.models.list()
        assert (caught.value.status_code, caught.value.response.headers["retry-after"]) == (503, "5")


def _edit(client: openai.OpenAI, png: bytes, model: str) -> Any:
    return client.images.edit(image=png, prompt=PROMPT, model=model)


def test_asynchronous_sdk_edits(server: str, png: bytes) -> None:
    async def ask() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="none") as client:
            return await client.images.edit(image=io.BytesIO(png), prompt=PROMPT)

    assert asyncio.run(ask()).data
