import time
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from app.engine.messages import (
    BatchLimitLowered,
    Canary,
    CanaryPassed,
    Cancel,
    Done,
    Failed,
    Preparing,
    Progress,
    Ready,
    Started,
    Ticked,
    WorkerFailing,
)
from tests.support.fakes import FakeDiffusion, FakeState, FakeTick
from tests.support.workers import Bench, job


def test_job_is_started_ticked_and_done() -> None:
    bench = Bench(job("a")).run()
    assert [type(message) for message in bench.sent] == [Started, *[Progress, Ticked] * 3, Done]
    assert [(m.step, m.steps) for m in bench.sent if isinstance(m, Progress)] == [(1, 3), (2, 3), (3, 3)]


def test_packing_is_done_in_parts_with_a_message_each() -> None:
    bench = Bench(prepared=False)
    bench.run_once(2)
    assert bench.diffusion.layers_left == 1
    bench.run_once(2)
    assert bench.diffusion.layers_left == -1
    assert bench.sent == [Preparing()] * 4
    bench.put(job("a"))
    bench.run()
    assert bench.diffusion.layers_left == -1


def test_job_during_packing_waits_and_can_be_cancelled_or_expire() -> None:
    bench = Bench(job("a"), job("gone"), job("late", deadline=0.0), prepared=False)
    bench.run_once()
    bench.put(Cancel("gone"))
    assert bench.names(Started) == []
    bench.run()
    assert bench.diffusion.layers_left == -1
    assert bench.names(Started) == bench.names(Done) == ["a"]
    assert bench.names(Failed) == ["late"]


def test_jobs_of_different_lengths_share_calls_and_leave_when_done() -> None:
    bench = Bench(job("long", steps=5, strength=1.0), job("short", steps=2, strength=1.0)).run()
    assert bench.diffusion.ticks == [["long", "short"], ["long", "short"], ["long"], ["long"], ["long"]]
    assert bench.names(Done) == ["short", "long"]
    assert [message.jobs for message in bench.sent if isinstance(message, Ticked)] == [2, 2, 1, 1, 1]


def test_new_job_joins_the_next_call() -> None:
    bench = Bench(job("first", steps=4, strength=1.0))
    bench.run_once(2)
    bench.put(job("second", steps=4, strength=1.0))
    bench.run()
    assert bench.diffusion.ticks[:3] == [["first"], ["first"], ["first", "second"]]


def test_at_most_max_batch_jobs_share_a_call() -> None:
    bench = Bench(*(job(name) for name in "abcde"), max_batch=2).run()
    assert max(len(tick) for tick in bench.diffusion.ticks) == 2
    assert bench.names(Done) == list("abcde")


def test_cancelled_job_leaves_before_the_next_call() -> None:
    bench = Bench(job("gone", steps=9, strength=1.0), job("stays", steps=9, strength=1.0))
    bench.run_once(3)
    bench.put(Cancel("gone"))
    bench.run()
    assert ["gone" in tick for tick in bench.diffusion.ticks].count(True) == 3
    assert bench.diffusion.finished == [["stays"]]
    assert bench.names(Done) == ["stays"]


def test_job_cancelled_while_it_waits_is_never_started() -> None:
    bench = Bench(job("a"), job("b"), Cancel("b"), max_batch=1).run()  # type: ignore[arg-type]
    assert bench.names(Started) == ["a"]


def test_expired_job_fails_before_the_next_call() -> None:
    bench = Bench(job("late", steps=50, strength=1.0, deadline=time.monotonic() + 0.05))
    bench.run_once()
    time.sleep(0.06)
    bench.run_once()
    assert bench.sent[-1] == Failed("late", "expired")
    assert len(bench.diffusion.ticks) == 1
    assert bench.diffusion.finished == []


def test_job_that_expires_while_it_waits_is_never_started() -> None:
    bench = Bench(job("late", deadline=0.0))
    bench.run_once()
    assert bench.sent == [Failed("late", "expired")]


@pytest.mark.parametrize("prompt", ["admit=fail", "fail_at=1", "finish=fail"])
def test_failing_job_leaves_other_jobs_intact(prompt: str) -> None:
    bench = Bench(job("good"), job("bad", prompt), job("fine")).run()
    assert [m for m in bench.sent if isinstance(m, Failed)] == [Failed("bad", "error")]
    assert sorted(bench.names(Done)) == ["fine", "good"]


def test_next_call_does_not_wait_for_a_download() -> None:
    bench = Bench(job("first", "way=3", steps=1, strength=1.0), job("second", steps=4, strength=1.0), max_batch=1)
    bench.run_once()
    assert bench.names(Done) == []
    bench.run_once(2)
    assert bench.diffusion.ticks == [["first"], ["second"], ["second"]]
    assert bench.names(Done) == []
    bench.run()
    assert bench.names(Done) == ["first", "second"]


def test_worker_hears_new_jobs_while_an_image_is_on_its_way() -> None:
    bench = Bench(job("first", "way=9", steps=1, strength=1.0))
    bench.run_once(3)
    assert bench.worker.pending
    assert bench.worker.batch.idle
    bench.put(job("second", steps=1, strength=1.0))
    bench.run()
    assert bench.diffusion.ticks == [["first"], ["second"]]
    assert bench.sent.index(Started("second")) < bench.sent.index(next(m for m in bench.sent if isinstance(m, Done)))


def test_host_is_one_call_ahead_of_the_device_at_most() -> None:
    bench = Bench(job("long", "lag=1000", steps=6, strength=1.0))
    for calls in range(1, 7):
        bench.run_once()
        assert len(bench.diffusion.queue) == calls
        # Waited for in order: all but the call that runs and the one behind it.
        assert [tick.waits for tick in bench.diffusion.queue] == [1] * max(0, calls - 2) + [0] * min(2, calls)
        assert len([message for message in bench.sent if isinstance(message, Ticked)]) == max(0, calls - 2)


def test_calls_are_reported_by_the_time_of_the_device() -> None:
    bench = Bench(job("a", "lag=3", steps=2, strength=1.0), job("b", steps=1, strength=1.0)).run()
    assert [message for message in bench.sent if isinstance(message, Ticked)] == [Ticked(2, 0.25), Ticked(1, 0.25)]
    assert not bench.worker.pending


@pytest.mark.parametrize("words", ["lag=fail", "way=fail"])
def test_failure_found_while_waiting_fails_its_job_alone(words: str) -> None:
    bad = replace(job("bad", words), previews=frozenset({1}))
    bench = Bench(bad, job("good")).run()
    assert [message for message in bench.sent if isinstance(message, Failed)] == [Failed("bad", "error")]
    assert bench.names(Done) == ["good"]


def test_lost_device_found_while_waiting_ends_the_worker() -> None:
    for words in ("lag=lost", "way=lost"):
        bench = Bench(job("a", words, steps=3, strength=1.0))
        with pytest.raises(SystemExit):
            bench.run()
        assert bench.sent[-1] == WorkerFailing("device")


def test_failed_download_leaves_other_jobs_intact() -> None:
    bench = Bench(job("good"), job("bad", "collect=fail")).run()
    assert [m for m in bench.sent if isinstance(m, Failed)] == [Failed("bad", "error")]
    assert bench.names(Done) == ["good"]


def test_non_finite_image_fails_its_job_as_non_finite() -> None:
    bench = Bench(job("good"), job("bad", "finish=nan")).run()
    assert [m for m in bench.sent if isinstance(m, Failed)] == [Failed("bad", "non_finite")]
    assert bench.names(Done) == ["good"]


class TestMemory:
    """Out of memory: cached memory is released and fewer jobs share a call."""

    def test_out_of_memory_halves_the_batch_limit_and_all_jobs_finish(self) -> None:
        bench = Bench(*(job(name, "oom_above=1") for name in "abcdefgh"), max_batch=8).run()
        assert bench.names(Done) == list("abcdefgh")
        assert bench.names(Failed) == []
        assert [message.capacity for message in bench.sent if isinstance(message, BatchLimitLowered)] == [4, 2, 1]
        assert bench.diffusion.freed == 3
        assert {len(tick) for tick in bench.diffusion.ticks[3:]} == {1}

    def test_lowered_batch_limit_holds(self) -> None:
        bench = Bench(job("a", "oom_above=2"), job("b", "oom_above=2"), job("c", "oom_above=2")).run()
        bench.put(*(job(name) for name in "defg"))
        bench.run()
        assert max(len(tick) for tick in bench.diffusion.ticks[1:]) == 1
        assert len(bench.names(Done)) == 7

    @pytest.mark.parametrize("where", ["oom_at=1", "oom=admit", "oom=finish"])
    def test_single_job_out_of_memory_is_retried_once_then_fails(self, where: str, tmp_path: Path) -> None:
        bench = Bench(job("lucky", f"{where} once={tmp_path / 'once'}"), max_batch=1).run()
        assert (bench.names(Done), bench.names(Failed), bench.diffusion.freed) == (["lucky"], [], 1)
        bench = Bench(job("hopeless", where), job("good"), max_batch=1).run()
        assert [m for m in bench.sent if isinstance(m, Failed)] == [Failed("hopeless", "memory")]
        assert bench.names(Done) == ["good"]
        assert not [message for message in bench.sent if isinstance(message, BatchLimitLowered)]

    def test_job_out_of_memory_beside_others_waits_for_them(self, tmp_path: Path) -> None:
        bench = Bench(job("first"), job("late", f"oom=admit once={tmp_path / 'once'}")).run()
        assert bench.names(Done) == ["first", "late"]
        assert [message.capacity for message in bench.sent if isinstance(message, BatchLimitLowered)] == [1]

    def test_download_out_of_memory_fails_as_memory(self) -> None:
        bench = Bench(job("bad", "oom=collect"), job("good")).run()
        assert [m for m in bench.sent if isinstance(m, Failed)] == [Failed("bad", "memory")]
        assert bench.names(Done) == ["good"]

    def test_memory_is_released_after_the_failed_call_s_tensors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # The test runner keeps log records, and with them the error.
        monkeypatch.setattr("app.worker.worker.logger.exception", lambda *arguments: None)
        held: list[int] = []

        class Watching(FakeDiffusion):
            def tick(self, states: Sequence[FakeState]) -> FakeTick:
                self.alive = [weakref.ref(state) for state in states]
                return super().tick(states)

            def release_memory(self) -> None:
                held.append(sum(one() is not None for one in self.alive))

        bench = Bench(job("a", "oom_above=1"), job("b", "oom_above=1"), diffusion=Watching("cpu")).run()
        assert len(bench.names(Done)) == 2
        assert held == [0]


@pytest.mark.parametrize("where", ["sick_at=1"])
def test_lost_device_ends_the_worker_with_a_message(where: str) -> None:
    bench = Bench(job("a", where), job("b"))
    with pytest.raises(SystemExit):
        bench.run()
    assert bench.sent[-1] == WorkerFailing("device")
    assert bench.names(Failed) == []


class TestCanary:
    def test_idle_worker_makes_a_canary_image(self) -> None:
        bench = Bench(Canary())  # type: ignore[arg-type]
        bench.run_once()
        assert (bench.sent, bench.canaries) == ([CanaryPassed()], 1)

    def test_busy_worker_passes_a_canary_without_an_image(self) -> None:
        bench = Bench(job("a"))
        bench.run_once()
        bench.put(Canary())
        bench.run()
        assert CanaryPassed() in bench.sent
        assert bench.canaries == 0

    def test_failed_canary_ends_the_worker(self) -> None:
        bench = Bench(Canary())  # type: ignore[arg-type]
        bench.fails = True
        with pytest.raises(SystemExit):
            bench.run_once()
        assert bench.sent == [WorkerFailing("canary")]


def test_messages_compare_by_value() -> None:
    info = FakeDiffusion("cpu").info
    assert Ready(info, 1.0, 4, 0.1) == Ready(info, 1.0, 4, 0.1) != Ready(info, 2.0, 4, 0.1)
