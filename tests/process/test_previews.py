"""Previews: the small image that the latents predict, and how it reaches the client."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from app.edits import Queued
from app.engine.messages import Job, Progress
from app.model.diffusion import SdxlDiffusion
from app.model.load import load
from app.model.previews import chart
from app.pixels import Pixels
from app.settings import Settings
from tests.support.engines import job as engine_job
from tests.support.engines import running


@pytest.fixture(scope="module")
def embedded() -> SdxlDiffusion:
    return load(Settings(model="embedded", devices="cpu"), "cpu")


def array(pixels: Pixels) -> np.ndarray:
    return np.frombuffer(pixels.data, np.uint8).reshape(pixels.height, pixels.width, 3).astype(float)


def test_preview_correlates_with_the_image_and_the_last_one_closely(
    embedded: SdxlDiffusion,
) -> None:
    dog = Image.open("scripts/demo.png").convert("RGB").resize((512, 512))
    job = Job("a", Pixels(512, 512, dog.tobytes()), "dog wizard", None, 6, 0.9, 0.0, 42, 1e12)
    state, previews = embedded.admit(job), []
    while not state.done:
        embedded.tick([state])
        preview = embedded.preview(state)
        assert preview.ready
        previews.append(array(preview.pixels()))
    result = embedded.collect(embedded.finish([state])[0])
    assert result
    final = Image.frombytes("RGB", (512, 512), result.pixels.data).resize(previews[0].shape[:2], Image.Resampling.BOX)
    likeness = [np.corrcoef(preview.ravel(), np.asarray(final).ravel())[0, 1] for preview in previews]
    assert min(likeness) > 0.9
    assert likeness[-1] > 0.97
    start = np.asarray(dog.resize(previews[0].shape[:2], Image.Resampling.BOX))
    assert np.corrcoef(previews[-1].ravel(), start.ravel())[0, 1] < 0.9, "not just the image that was sent"


def test_preview_does_not_change_the_image(embedded: SdxlDiffusion) -> None:
    pixels = []
    for shown in (False, True):
        state = embedded.admit(Job("a", chart(512, 512), "cat", None, 3, 1.0, 0.0, 1, 1e12))
        while not state.done:
            embedded.tick([state])
            if shown:
                embedded.preview(state)
        result = embedded.collect(embedded.finish([state])[0])
        assert result
        pixels.append(result.pixels)
    assert pixels[0] == pixels[1]


@pytest.mark.anyio
async def test_previews_reach_the_caller_of_the_job() -> None:
    seen: list[Queued | Progress] = []
    async with running() as engine:
        await engine.run(replace(engine_job(steps=4), previews=frozenset({2})), seen.append)
    assert [message.step for message in seen if isinstance(message, Progress) and message.preview] == [2]
