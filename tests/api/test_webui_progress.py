"""Progress, interruption and failures by the web UI's API."""

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from PIL import Image

from tests.support.http import eventually, sample
from tests.support.images import noise, saved
from tests.support.sdks import webui_client
from tests.support.servers import StartServer

IMAGE = noise((64, 64))


LONG = {"steps": 4, "denoising_strength": 1.0, "seed": 3}


class TestProgress:
    def test_progress_shows_the_caller_s_own_request(self, start_server: StartServer) -> None:
        with start_server() as url, ThreadPoolExecutor() as pool:
            api = webui_client(url)
            before = api.get_progress()
            assert (before["progress"], before["state"]["sampling_steps"]) == (0.0, 0)
            request = pool.submit(api.img2img, images=[IMAGE], prompt="tick=0.3", **LONG)
            eventually(lambda: api.get_progress()["progress"] == 0.5)
            seen = api.get_progress()
            assert (seen["state"]["sampling_steps"], seen["state"]["job_count"]) == (4, 1)
            assert seen["eta_relative"] > 0
            image = Image.open(io.BytesIO(base64.b64decode(seen["current_image"])))
            assert image.size == (512, 512)
            without = httpx2.get(f"{url}/sdapi/v1/progress?skip_current_image=true").json()
            assert without["current_image"] is None
            assert request.result().image
            assert api.get_progress()["progress"] == 0.0

    def test_interrupt_ends_the_caller_s_own_request_only(self, start_server: StartServer) -> None:
        with start_server(api_keys="mine,other") as url, ThreadPoolExecutor() as pool:
            mine, other = webui_client(url), webui_client(url)
            mine.set_auth("me", "mine")
            other.set_auth("you", "other")
            ask = {"images": [IMAGE], "prompt": "tick=0.6", **LONG}
            requests = [pool.submit(mine.img2img, **ask), pool.submit(other.img2img, **ask)]
            key = {"X-API-Key": "mine"}
            eventually(lambda: httpx2.get(f"{url}/sdapi/v1/progress", headers=key).json()["state"]["sampling_step"] > 0)
            mine.interrupt()
            with pytest.raises(RuntimeError) as caught:
                requests[0].result()
            assert caught.value.args[0] == 409
            assert json.loads(caught.value.args[1])["error"] == "interrupted"
            assert requests[1].result().image

    def test_progress_shows_the_oldest_of_several_requests(self, start_server: StartServer) -> None:
        with start_server() as url, ThreadPoolExecutor() as pool:
            api = webui_client(url)
            first = pool.submit(api.img2img, images=[IMAGE], prompt="tick=0.2", **LONG)
            eventually(lambda: api.get_progress()["state"]["job_count"] == 1)
            second = pool.submit(api.img2img, images=[IMAGE], prompt="tick=0.2", batch_size=8, **LONG)
            eventually(lambda: api.get_progress()["state"]["job_count"] == 2)
            assert api.get_progress()["state"]["sampling_steps"] == 4
            assert first.result().image
            # Not all of its pictures fit on board at once: there is time to look.
            assert api.get_progress()["state"]["sampling_steps"] == 32
            assert len(second.result().images) == 8

    def test_disconnect_ends_the_work(self, start_server: StartServer) -> None:
        with start_server() as url:
            body = {"init_images": [base64.b64encode(saved(IMAGE, "PNG")).decode()], "prompt": "tick=0.5", **LONG}
            with pytest.raises(httpx2.ReadTimeout):
                httpx2.post(f"{url}/sdapi/v1/img2img", json=body, timeout=0.8)
            eventually(lambda: sample(url, "img2img_jobs_on_board") == 0)
            assert sample(url, "img2img_images_total") == 0

    def test_failure_of_one_image_fails_the_request(self, api: Any) -> None:
        with pytest.raises(RuntimeError) as caught:
            api.img2img(images=[IMAGE], prompt="fail_at=1", batch_size=2, **LONG)
        assert caught.value.args[0] == 500
