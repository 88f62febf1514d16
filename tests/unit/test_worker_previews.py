"""When a worker sends previews."""

from dataclasses import replace

from app.engine.messages import Done, Progress
from app.pixels import Pixels
from tests.support.workers import Bench
from tests.support.workers import job as worker_job


def test_previews_come_after_their_steps_and_before_the_image() -> None:
    job = replace(worker_job("a", steps=5, strength=1.0), previews=frozenset({1, 3, 5}))
    sent = Bench(job).run().sent
    shown = [message for message in sent if isinstance(message, Progress) and message.preview]
    assert [(message.step, message.steps) for message in shown] == [(1, 5), (3, 5)]
    assert [message.preview for message in shown] == [Pixels(1, 1, bytes([step] * 3)) for step in (1, 3)]
    assert isinstance(sent[-1], Done)
    plain = [message.step for message in sent if isinstance(message, Progress) and not message.preview]
    assert plain == [1, 2, 3, 4, 5]


def test_slow_preview_is_sent_later_and_delays_nothing() -> None:
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


def test_failed_preview_fails_only_its_job() -> None:
    bench = Bench(
        replace(worker_job("a", "preview=fail", steps=3, strength=1.0), previews=frozenset({1})),
        worker_job("b", steps=3, strength=1.0),
    ).run()
    ends = {message.job_id: type(message).__name__ for message in bench.sent if hasattr(message, "job_id")}
    assert ends == {"a": "Failed", "b": "Done"}
