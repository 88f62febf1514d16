import time
from queue import SimpleQueue
from typing import Any

import pytest

from app.engine.jobs import Cancel, Done, Failed, Job, Pixels, Progress, Ready, Settling, Started, Ticked
from app.engine.worker import Worker, _warm_up, warm_up
from app.errors import CheckpointError
from tests.fakes import FakeDecoding, FakeDiffusion, FakeState


def job(name: str, prompt: str = "", steps: int = 4, strength: float = 0.9, deadline: float = 1e12) -> Job:
    return Job(name, Pixels(8, 8, bytes(192)), prompt, None, steps, strength, 0.0, 0, deadline)


class Bench:
    """A worker in this process, turned by hand."""

    def __init__(self, *jobs: Job, max_batch: int = 4, settled: bool = True) -> None:
        self.diffusion = FakeDiffusion("cpu")
        self.inbox: SimpleQueue[Any] = SimpleQueue()
        self.sent: list[Any] = []
        self.worker = Worker(self.diffusion, max_batch, self.inbox, self.sent.append)
        if settled:
            self.turn(4)
            self.sent.clear()
        self.put(*jobs)

    def put(self, *messages: Any) -> None:
        for message in messages:
            self.inbox.put(message)

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.worker.turn()

    def run(self) -> "Bench":
        """Turn until nothing is left to do."""
        self.turn()
        while not self.worker.batch.idle:
            self.turn()
        return self

    def names(self, kind: type[Any]) -> list[str]:
        return [message.job_id for message in self.sent if isinstance(message, kind)]


def test_a_job_is_started_ticked_step_by_step_and_done() -> None:
    bench = Bench(job("a")).run()
    assert [type(message) for message in bench.sent] == [Started, *[Ticked, Progress] * 3, Done]
    assert [(m.step, m.steps) for m in bench.sent if isinstance(m, Progress)] == [(1, 3), (2, 3), (3, 3)]


def test_what_can_wait_is_done_bit_by_bit_with_a_sign_of_life_each() -> None:
    bench = Bench(settled=False)
    bench.turn(2)
    assert bench.diffusion.unsettled == 1
    bench.turn(2)
    assert bench.diffusion.unsettled == -1
    assert bench.sent == [Settling()] * 4
    bench.put(job("a"))
    bench.run()
    assert bench.diffusion.unsettled == -1


def test_a_job_that_comes_early_waits_for_it_and_can_be_cancelled_or_expire_meanwhile() -> None:
    bench = Bench(job("a"), job("gone"), job("late", deadline=0.0), settled=False)
    bench.turn()
    bench.put(Cancel("gone"))
    assert bench.names(Started) == []
    bench.run()
    assert bench.diffusion.unsettled == -1
    assert bench.names(Started) == bench.names(Done) == ["a"]
    assert bench.names(Failed) == ["late"]


def test_jobs_of_different_lengths_share_their_calls_and_leave_when_they_are_done() -> None:
    bench = Bench(job("long", steps=5, strength=1.0), job("short", steps=2, strength=1.0)).run()
    assert bench.diffusion.ticks == [["long", "short"], ["long", "short"], ["long"], ["long"], ["long"]]
    assert bench.names(Done) == ["short", "long"]
    assert [message.jobs for message in bench.sent if isinstance(message, Ticked)] == [2, 2, 1, 1, 1]


def test_a_new_job_joins_at_the_next_call_without_waiting_for_the_batch_to_finish() -> None:
    bench = Bench(job("first", steps=4, strength=1.0))
    bench.turn(2)
    bench.put(job("second", steps=4, strength=1.0))
    bench.run()
    assert bench.diffusion.ticks[:3] == [["first"], ["first"], ["first", "second"]]


def test_no_more_than_max_batch_jobs_share_a_call() -> None:
    bench = Bench(*(job(name) for name in "abcde"), max_batch=2).run()
    assert max(len(tick) for tick in bench.diffusion.ticks) == 2
    assert bench.names(Done) == list("abcde")


def test_a_cancelled_job_leaves_before_the_next_call_and_is_never_decoded() -> None:
    bench = Bench(job("gone", steps=9, strength=1.0), job("stays", steps=9, strength=1.0))
    bench.turn(3)
    bench.put(Cancel("gone"))
    bench.run()
    assert ["gone" in tick for tick in bench.diffusion.ticks].count(True) == 3
    assert bench.diffusion.finished == [["stays"]]
    assert bench.names(Done) == ["stays"]


def test_a_job_cancelled_before_it_boards_is_never_started() -> None:
    bench = Bench(job("a"), job("b"), Cancel("b"), max_batch=1).run()  # type: ignore[arg-type]
    assert bench.names(Started) == ["a"]


def test_an_expired_job_leaves_before_the_next_call_and_says_so() -> None:
    bench = Bench(job("late", steps=50, strength=1.0, deadline=time.monotonic() + 0.05))
    bench.turn()
    time.sleep(0.06)
    bench.turn()
    assert bench.sent[-1] == Failed("late", "expired")
    assert len(bench.diffusion.ticks) == 1
    assert bench.diffusion.finished == []


def test_a_job_that_expired_while_it_waited_is_never_started() -> None:
    bench = Bench(job("late", deadline=0.0))
    bench.turn()
    assert bench.sent == [Failed("late", "expired")]


@pytest.mark.parametrize("prompt", ["admit=fail", "fail_at=1", "finish=fail"])
def test_a_job_that_fails_fails_alone(prompt: str) -> None:
    bench = Bench(job("good"), job("bad", prompt), job("fine")).run()
    assert [m for m in bench.sent if isinstance(m, Failed)] == [Failed("bad", "error")]
    assert sorted(bench.names(Done)) == ["fine", "good"]


def test_the_next_call_does_not_wait_for_a_picture_on_its_way_from_the_device() -> None:
    bench = Bench(job("first", "way=3", steps=1, strength=1.0), job("second", steps=4, strength=1.0), max_batch=1)
    bench.turn()
    assert bench.names(Done) == []
    bench.turn(2)
    assert bench.diffusion.ticks == [["first"], ["second"], ["second"]]
    assert bench.names(Done) == []
    bench.run()
    assert bench.names(Done) == ["first", "second"]


def test_a_picture_on_its_way_is_waited_for_if_nothing_else_is_to_be_done() -> None:
    bench = Bench(job("only", "way=1000", steps=1, strength=1.0))
    bench.turn()
    assert bench.names(Done) == ["only"]


def test_a_picture_that_cannot_be_fetched_fails_alone() -> None:
    bench = Bench(job("good"), job("bad", "collect=fail")).run()
    assert [m for m in bench.sent if isinstance(m, Failed)] == [Failed("bad", "error")]
    assert bench.names(Done) == ["good"]


def test_a_picture_without_numbers_fails_alone_with_its_own_reason() -> None:
    bench = Bench(job("good"), job("bad", "finish=nan")).run()
    assert [m for m in bench.sent if isinstance(m, Failed)] == [Failed("bad", "non_finite")]
    assert bench.names(Done) == ["good"]


class Sized(FakeDiffusion):
    """Remembers how wide the pictures were, and takes its time for each."""

    def __init__(self, device: str, seconds: float = 0.0) -> None:
        super().__init__(device)
        self.widths: list[int] = []
        self.seconds = seconds

    def admit(self, job: Job) -> FakeState:
        self.widths.append(job.pixels.width)
        time.sleep(self.seconds)
        return super().admit(job)


def test_the_warm_up_is_a_real_pass() -> None:
    diffusion = Sized("cpu")
    assert 0 <= warm_up(diffusion) < 5
    assert diffusion.widths[-1] == 512
    assert len(diffusion.ticks) == len(diffusion.finished) == len(diffusion.widths)


def test_where_that_would_take_long_a_small_picture_must_do() -> None:
    diffusion = Sized("cpu", seconds=0.6)
    # It must be known as slow all the same, or the first request would get too little time.
    assert warm_up(diffusion) > 4 * 0.6
    assert diffusion.widths == [64]
    assert diffusion.finished == [["warm-up"]]


def test_a_compiled_model_is_warmed_up_at_each_of_its_batch_sizes_before_its_speed_is_taken() -> None:
    diffusion = Sized("cpu")
    diffusion.compiled = (1, 2, 4)
    assert 0 <= warm_up(diffusion) < 5
    assert [len(jobs) for jobs in diffusion.ticks] == [1, 2, 4, 1]
    assert set(diffusion.widths) == {512}


def test_a_model_that_cannot_be_compiled_is_no_start_and_is_not_tried_again() -> None:
    class Broken(FakeDiffusion):
        def tick(self, states: Any) -> None:
            raise RuntimeError("no such kernel")

    diffusion = Broken("cpu")
    diffusion.compiled = (1,)
    with pytest.raises(CheckpointError, match=r"IMG2IMG_COMPILE=max fails here: no such kernel\. Set it to off"):
        _warm_up(diffusion, "max")
    diffusion.compiled = ()
    with pytest.raises(RuntimeError, match="no such kernel"):
        _warm_up(diffusion, "off")


def test_a_gpu_is_warmed_up_at_the_real_size_however_long_that_takes() -> None:
    diffusion = Sized("cuda:0", seconds=0.6)
    assert 0 <= warm_up(diffusion) < 5
    assert diffusion.widths == [512]


def test_a_warm_up_without_a_finite_picture_is_no_start() -> None:
    class Broken(FakeDiffusion):
        def collect(self, decoding: FakeDecoding) -> None:
            return None

    with pytest.raises(RuntimeError, match="NaN"):
        warm_up(Broken("cpu"))


def test_messages_compare_by_value() -> None:
    info = FakeDiffusion("cpu").info
    assert Ready(info, 1.0, 4) == Ready(info, 1.0, 4) != Ready(info, 2.0, 4)
