"""Errors and streams by OpenAI's own SDK."""

import base64
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.support.http import eventually, post, sample
from tests.support.images import opened
from tests.support.sdks import openai_client
from tests.support.servers import StartServer

PROMPT = "a wizard"


class TestErrors:
    def test_missing_key_raises_the_sdk_s_error(self, start_server: StartServer, png: bytes) -> None:
        with start_server(api_keys="right") as url:
            with openai_client(url, api_key="wrong") as client, pytest.raises(openai.AuthenticationError) as caught:
                client.images.edit(image=png, prompt=PROMPT)
            assert caught.value.code == "invalid_api_key"
            with openai_client(url, api_key="right") as client:
                assert client.images.edit(image=png, prompt=PROMPT).data

    def test_unknown_path_has_the_same_error_shape(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as caught:
            client.images.generate(prompt=PROMPT)
        assert caught.value.code == "not_found"
        assert "POST /v1/images/edits" in caught.value.message

    def test_sdk_waits_for_retry_after_and_retries(self, start_server: StartServer, png: bytes) -> None:
        with start_server(queue_size=1) as url, openai_client(url, max_retries=5) as client:
            with ThreadPoolExecutor() as pool:
                first = pool.submit(post, url, png, prompt="tick=0.3")
                eventually(lambda: sample(url, "img2img_jobs_on_board") == 1)
                assert client.images.edit(image=png, prompt=PROMPT).data
                assert first.result().status_code == 200
            assert sample(url, 'img2img_rejected_total{reason="queue_full"}')

    def test_permanent_failure_is_not_retried(self, server: str, png: bytes) -> None:
        before = sample(server, 'img2img_requests_total{code="500",route="/v1/images/edits"}')
        with openai_client(server, max_retries=3) as client, pytest.raises(openai.InternalServerError) as caught:
            client.images.edit(image=png, prompt="fail_at=0")
        assert caught.value.code == "inference_failed"
        after = sample(server, 'img2img_requests_total{code="500",route="/v1/images/edits"}')
        assert after == (before or 0) + 1


LONG = {"num_inference_steps": 8, "strength": 1, "seed": 3}


class TestStream:
    def test_previews_come_at_even_steps_and_then_the_image(
        self, client: openai.OpenAI, server: str, png: bytes
    ) -> None:
        stream = client.images.edit(image=png, prompt=PROMPT, stream=True, partial_images=3, extra_body=LONG)
        *partial, last = list(stream)
        assert [event.type for event in partial] == ["image_edit.partial_image"] * 3
        assert [event.partial_image_index for event in partial] == [0, 1, 2]  # type: ignore[union-attr]
        previews = [opened(base64.b64decode(event.b64_json)) for event in partial]
        assert {image.size for image in previews} == {(512, 512)}
        # The fake's previews are of the colour of their step.
        assert [image.getpixel((9, 9)) for image in previews] == [(step, step, step) for step in (2, 4, 6)]
        assert last.type == "image_edit.completed"
        alone = post(server, png, prompt=PROMPT, num_inference_steps="8", strength="1", seed="3").content
        assert base64.b64decode(last.b64_json) == alone
        assert last.usage.total_tokens == 0

    def test_stream_without_previews_has_one_event(self, client: openai.OpenAI, png: bytes) -> None:
        (event,) = client.images.edit(image=png, prompt=PROMPT, stream=True)
        assert event.type == "image_edit.completed"

    def test_refusal_before_the_stream_is_an_error_response(self, client: openai.OpenAI, png: bytes) -> None:
        with pytest.raises(openai.BadRequestError):
            client.images.edit(image=png, prompt=PROMPT, stream=True, extra_body={"strength": 0.1})
        with pytest.raises(openai.BadRequestError):
            client.images.edit(image=b"GIF89a", prompt=PROMPT, stream=True)

    def test_failure_during_the_stream_is_an_error_event(self, client: openai.OpenAI, png: bytes) -> None:
        stream = client.images.edit(image=png, prompt="fail_at=5", stream=True, partial_images=3, extra_body=LONG)
        seen: list[str] = []
        with pytest.raises(openai.APIError, match="could not be made") as caught:
            seen.extend(event.type for event in stream)
        assert seen == ["image_edit.partial_image"] * 2, "not those of the second try once more"
        assert caught.value.code == "inference_failed"

    def test_closing_the_stream_ends_the_work(self, start_server: StartServer, png: bytes) -> None:
        with start_server() as url, openai_client(url) as client:
            stream = client.images.edit(
                image=png, prompt="tick=0.2", stream=True, partial_images=3, extra_body={**LONG, "seed": 1}
            )
            next(iter(stream))
            assert sample(url, "img2img_jobs_on_board") == 1
            stream.close()
            eventually(lambda: sample(url, "img2img_jobs_on_board") == 0)
            assert sample(url, "img2img_images_total") == 0
