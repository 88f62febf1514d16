import pytest

from app.engine.admission import CODEC_ROWS, Admission
from app.errors import DeadlineExceeded, QueueFull, TooManyRequests


def test_every_request_fits_before_a_measurement() -> None:
    admission = Admission(queue_size=3, deadline_seconds=10)
    assert [admission.admit(3) for _ in range(3)] == [10, 10, 10]


def test_full_queue_refuses_until_a_request_ends() -> None:
    admission = Admission(queue_size=1, deadline_seconds=10)
    admission.admit(3)
    with pytest.raises(QueueFull, match="1 places"):
        admission.admit(3)
    admission.release(3)
    admission.admit(3)


def test_request_that_cannot_meet_its_deadline_gets_retry_after() -> None:
    admission = Admission(queue_size=100, deadline_seconds=10)
    admission.measured(3, 4.0)
    admission.admit(3)
    admission.admit(3)
    with pytest.raises(DeadlineExceeded) as error:
        admission.admit(3)
    assert error.value.retry_after == pytest.approx(5.0)
    assert error.value.code == "deadline_exceeded"


def test_idle_service_admits_a_slow_request_with_more_time() -> None:
    admission = Admission(queue_size=100, deadline_seconds=10)
    admission.measured(3, 40.0)
    assert admission.admit(3) == pytest.approx(100.0)
    with pytest.raises(DeadlineExceeded):
        admission.admit(3)


def test_prediction_grows_with_the_work() -> None:
    admission = Admission(queue_size=100, deadline_seconds=10)
    admission.measured(3, 5.0)
    admission.admit(3)
    with pytest.raises(DeadlineExceeded):
        admission.admit(6)
    admission.admit(1)


def test_jobs_that_finish_at_once_are_measured_together() -> None:
    admission = Admission(queue_size=100, deadline_seconds=10)
    for _ in range(200):
        for seconds in (4.0, 0.0, 0.0, 0.0):
            admission.measured(3, seconds)
    per_row = 4.0 / (4 * (3 + CODEC_ROWS))
    assert admission.seconds_per_row == pytest.approx(per_row, rel=0.25)


class TestSharing:
    def test_caller_alone_may_take_every_place(self) -> None:
        admission = Admission(queue_size=4, deadline_seconds=10)
        for _ in range(4):
            admission.admit(3, "greedy")
        with pytest.raises(QueueFull):
            admission.admit(3, "greedy")

    def test_full_queue_admits_a_new_caller_and_refuses_the_greedy_one(self) -> None:
        admission = Admission(queue_size=4, deadline_seconds=10)
        for _ in range(4):
            admission.admit(3, "greedy")
        admission.admit(3, "modest")
        for left in (4, 3):
            with pytest.raises(TooManyRequests, match=f"{left} of your requests") as error:
                admission.admit(3, "greedy")
            assert error.value.status == 429
            admission.release(3, "greedy")
        admission.admit(3, "greedy")

    def test_many_callers_fill_the_queue_to_twice_its_size(self) -> None:
        admission = Admission(queue_size=4, deadline_seconds=10)
        for number in range(8):
            admission.admit(3, f"caller {number}")
        with pytest.raises(QueueFull):
            admission.admit(3, "one more")

    def test_modest_caller_is_predicted_its_turn_only(self) -> None:
        admission = Admission(queue_size=100, deadline_seconds=10)
        admission.measured(3, 1.0)
        for _ in range(7):
            admission.admit(3, "greedy")
        admission.admit(3, "modest")
        with pytest.raises(TooManyRequests, match="Most of the requests ahead are yours"):
            admission.admit(3, "greedy")
        # Of the greedy one's 35 rows no more than its own 5 and 5 go before it: 4 s at the most likely, 5 at the worst.
        assert admission.admit(3, "modest", timeout=5.1) == 5.1
        with pytest.raises(DeadlineExceeded):
            admission.admit(3, "third", timeout=3.7)

    def test_released_requests_are_forgotten(self) -> None:
        admission = Admission(queue_size=4, deadline_seconds=10)
        for caller in ("a", "b"):
            admission.admit(3, caller)
        for caller in ("a", "b"):
            admission.release(3, caller)
        assert (admission.requests, admission.rows, admission._loads) == (0, 0, {})


class TestTimeouts:
    def test_timeout_may_be_shorter_than_the_deadline_but_not_longer(self) -> None:
        admission = Admission(queue_size=4, deadline_seconds=10)
        assert admission.admit(3, timeout=2.5) == 2.5
        assert admission.admit(3, timeout=99) == 10

    def test_hopeless_timeout_is_refused_at_once_when_idle(self) -> None:
        admission = Admission(queue_size=4, deadline_seconds=10)
        admission.measured(3, 5.0)
        with pytest.raises(DeadlineExceeded, match=r"take 6\.2 s, and the limit is 2 s"):
            admission.admit(3, timeout=2)
        assert admission.requests == 0

    def test_time_until_work_can_begin_counts(self) -> None:
        admission = Admission(queue_size=4, deadline_seconds=10)
        admission.measured(3, 1.0)
        assert admission.admit(3, delay=30) == pytest.approx(77.5)
        with pytest.raises(DeadlineExceeded):
            admission.admit(3, delay=30)


def test_request_with_too_little_time_left_is_too_late() -> None:
    admission = Admission(queue_size=4, deadline_seconds=10)
    assert not admission.too_late(3, 0.001)
    admission.measured(3, 5.0)
    assert admission.too_late(3, 4.9)
    assert not admission.too_late(3, 5.1)
