"""Previews: what a small picture of the latents promises, and how it comes to whoever asked for it."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from app.edits import Queued
from app.engine.messages import Done, Job, Progress
from app.model.diffusion import SdxlDiffusion
from app.model.load import load
from app.model.previews import chart
from app.pixels import Pixels
from app.settings import Settings
from tests.support.engines import in_a_loop, running
from tests.support.engines import job as engine_job
from tests.support.workers import Bench
from tests.support.workers import job as worker_job


@pytest.fixture(scope="module")
def embedded() -> SdxlDiffusion:
    return load(Settings(model="embedded", devices="cpu"), "cpu")


def array(pixels: Pixels) -> np.ndarray:
    return np.frombuffer(pixels.data, np.uint8).reshape(pixels.height, pixels.width, 3).astype(float)


def test_each_step_promises_the_final_picture_better_than_chance_and_the_last_one_closely(
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
    assert np.corrcoef(previews[-1].ravel(), start.ravel())[0, 1] < 0.9, "not just the picture that was sent"


def test_a_preview_changes_nothing_of_the_picture(embedded: SdxlDiffusion) -> None:
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


def test_they_come_after_the_steps_that_were_asked_for_and_before_the_picture() -> None:
    job = replace(worker_job("a", steps=5, strength=1.0), previews=frozenset({1, 3, 5}))
    sent = Bench(job).run().sent
    shown = [message for message in sent if isinstance(message, Progress) and message.preview]
    assert [(message.step, message.steps) for message in shown] == [(1, 5), (3, 5)]
    assert [message.preview for message in shown] == [Pixels(1, 1, bytes([step] * 3)) for step in (1, 3)]
    assert isinstance(sent[-1], Done)
    plain = [message.step for message in sent if isinstance(message, Progress) and not message.preview]
    assert plain == [1, 2, 3, 4, 5]


def test_one_that_is_still_on_its_way_holds_nothing_up_and_comes_later() -> None:
    job = replace(worker_job("a", "way=2", steps=5, strength=1.0), previews=frozenset({1, 2}))
    sent = Bench(job).run().sent
    kinds = [
        f"preview {message.step}" if message.preview else f"step {message.step}"
        for message in sent
        if isinstance(message, Progress)
    ]
    assert kinds.index("preview 1") > kinds.index("step 2")
    assert {"preview 1", "preview 2"} <= set(kinds)
    assert isinstance(sent[-1], Done)


def test_one_that_cannot_be_made_fails_its_job_alone() -> None:
    bench = Bench(
        replace(worker_job("a", "preview=fail", steps=3, strength=1.0), previews=frozenset({1})),
        worker_job("b", steps=3, strength=1.0),
    ).run()
    ends = {message.job_id: type(message).__name__ for message in bench.sent if hasattr(message, "job_id")}
    assert ends == {"a": "Failed", "b": "Done"}


@in_a_loop
async def test_they_reach_whoever_waits_for_the_job() -> None:
    seen: list[Queued | Progress] = []
    async with running() as engine:
        await engine.run(replace(engine_job(steps=4), previews=frozenset({2})), seen.append)
    assert [message.step for message in seen if isinstance(message, Progress) and message.preview] == [2]
