import pytest

from app.engine.admission import CODEC_ROWS, Admission
from app.errors import DeadlineExceeded, QueueFull


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
    assert error.value.retry_after == pytest.approx(2.0)
    assert error.value.code == "deadline_exceeded"


def test_an_idle_server_takes_a_request_however_slow_it_is_and_gives_it_the_time() -> None:
    admission = Admission(queue_size=100, deadline_seconds=10)
    admission.measured(3, 40.0)
    assert admission.admit(3) == pytest.approx(80.0)
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
