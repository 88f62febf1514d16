import pytest

from app.engine.admission import CODEC_ROWS, Admission
from app.errors import DeadlineExceeded, QueueFull, TooManyRequests


def test_without_a_measurement_everything_fits() -> None:
    admission = Admission(queue_size=3, deadline_seconds=10)
    assert [admission.admit(3) for _ in range(3)] == [10, 10, 10]


def test_one_more_than_the_queue_holds_is_refused_until_one_leaves() -> None:
    admission = Admission(queue_size=1, deadline_seconds=10)
    admission.admit(3)
    with pytest.raises(QueueFull, match="1 places"):
        admission.admit(3)
    admission.release(3)
    admission.admit(3)


def test_a_request_that_cannot_make_its_deadline_is_refused_with_the_time_to_wait() -> None:
    admission = Admission(queue_size=100, deadline_seconds=10)
    admission.measured(3, 4.0)
    admission.admit(3)
    admission.admit(3)
    with pytest.raises(DeadlineExceeded) as error:
        admission.admit(3)
    assert error.value.retry_after == pytest.approx(5.0)
    assert error.value.code == "deadline_exceeded"


def test_an_idle_server_takes_a_request_however_slow_it_is_and_gives_it_the_time() -> None:
    admission = Admission(queue_size=100, deadline_seconds=10)
    admission.measured(3, 40.0)
    assert admission.admit(3) == pytest.approx(100.0)
    with pytest.raises(DeadlineExceeded):
        admission.admit(3)


def test_the_prediction_follows_the_work_asked_for() -> None:
    admission = Admission(queue_size=100, deadline_seconds=10)
    admission.measured(3, 5.0)
    admission.admit(3)
    with pytest.raises(DeadlineExceeded):
        admission.admit(6)
    admission.admit(1)


def test_jobs_that_finish_in_the_same_moment_are_counted_together() -> None:
    admission = Admission(queue_size=100, deadline_seconds=10)
    for _ in range(200):
        for seconds in (4.0, 0.0, 0.0, 0.0):
            admission.measured(3, seconds)
    per_row = 4.0 / (4 * (3 + CODEC_ROWS))
    assert admission.seconds_per_row == pytest.approx(per_row, rel=0.25)


class TestSharing:
    def test_a_caller_alone_may_take_every_place_but_no_more(self) -> None:
        admission = Admission(queue_size=4, deadline_seconds=10)
        for _ in range(4):
            admission.admit(3, "greedy")
        with pytest.raises(QueueFull):
            admission.admit(3, "greedy")

    def test_another_is_let_in_beyond_a_full_queue_and_the_greedy_one_sent_away_until_it_has_its_share(self) -> None:
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

    def test_many_callers_fill_the_queue_to_its_double_and_then_the_server_is_full_for_all(self) -> None:
        admission = Admission(queue_size=4, deadline_seconds=10)
        for number in range(8):
            admission.admit(3, f"caller {number}")
        with pytest.raises(QueueFull):
            admission.admit(3, "one more")

    def test_a_modest_caller_is_predicted_its_turn_and_not_all_that_waits(self) -> None:
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

    def test_what_is_released_is_forgotten(self) -> None:
        admission = Admission(queue_size=4, deadline_seconds=10)
        for caller in ("a", "b"):
            admission.admit(3, caller)
        for caller in ("a", "b"):
            admission.release(3, caller)
        assert (admission.requests, admission.rows, admission._loads) == (0, 0, {})


class TestTimeouts:
    def test_a_caller_may_wait_less_long_but_not_longer(self) -> None:
        admission = Admission(queue_size=4, deadline_seconds=10)
        assert admission.admit(3, timeout=2.5) == 2.5
        assert admission.admit(3, timeout=99) == 10

    def test_one_who_would_wait_in_vain_is_told_at_once_even_by_an_idle_server(self) -> None:
        admission = Admission(queue_size=4, deadline_seconds=10)
        admission.measured(3, 5.0)
        with pytest.raises(DeadlineExceeded, match=r"take 6\.2 s, and the limit is 2 s"):
            admission.admit(3, timeout=2)
        assert admission.requests == 0

    def test_the_time_until_work_can_begin_counts(self) -> None:
        admission = Admission(queue_size=4, deadline_seconds=10)
        admission.measured(3, 1.0)
        assert admission.admit(3, delay=30) == pytest.approx(77.5)
        with pytest.raises(DeadlineExceeded):
            admission.admit(3, delay=30)


def test_one_that_can_not_be_done_in_time_any_more_is_known() -> None:
    admission = Admission(queue_size=4, deadline_seconds=10)
    assert not admission.too_late(3, 0.001)
    admission.measured(3, 5.0)
    assert admission.too_late(3, 4.9)
    assert not admission.too_late(3, 5.1)
