import pytest

from app.engine.messages import Job
from app.pixels import Pixels
from app.worker.batch import Batch


def job(name: str, deadline: float = 100.0) -> Job:
    return Job(name, Pixels(8, 8, bytes(192)), "", None, 4, 0.9, 0.0, 0, deadline)


def fill(batch: Batch[str]) -> list[str]:
    """Admit all jobs for which there is room; returns their ids."""
    admitted = []
    while ready := batch.next():
        batch.board(ready.id, ready.id)
        admitted.append(ready.id)
    return admitted


def batch_of(capacity: int, *names: str) -> Batch[str]:
    batch: Batch[str] = Batch(capacity)
    for name in names:
        batch.add(job(name))
    return batch


def test_jobs_are_admitted_in_order_up_to_the_capacity() -> None:
    batch = batch_of(2, "a", "b", "c")
    assert fill(batch) == ["a", "b"]
    assert fill(batch) == []


def test_next_job_is_admitted_when_one_leaves() -> None:
    batch = batch_of(2, "a", "b", "c", "d")
    fill(batch)
    batch.leave("b")
    assert fill(batch) == ["c"]
    assert list(batch.on_board) == ["a", "c"]


def test_job_that_leaves_while_it_waits_is_never_admitted() -> None:
    batch = batch_of(1, "a", "b", "c")
    fill(batch)
    batch.leave("b")
    batch.leave("a")
    assert fill(batch) == ["c"]


def test_job_that_is_being_encoded_counts_as_admitted() -> None:
    batch = batch_of(1, "a", "b")
    taken = batch.next()
    assert taken is not None
    assert batch.next() is None
    assert not batch.idle
    batch.leave("a")
    assert fill(batch) == ["b"]


def test_leave_of_an_unknown_job_has_no_effect() -> None:
    batch = batch_of(2, "a")
    batch.leave("unknown")
    fill(batch)
    batch.leave("a")
    batch.leave("a")
    assert batch.idle


def test_batch_is_idle_without_waiting_and_admitted_jobs() -> None:
    batch = batch_of(1, "a")
    assert not batch.idle
    fill(batch)
    assert not batch.idle
    batch.leave("a")
    assert batch.idle


def test_restarted_jobs_run_first_and_isolated() -> None:
    batch = batch_of(4, "a", "b")
    fill(batch)
    batch.add(job("c"))
    batch.restart(["a", "b"], isolated=True)
    assert batch.on_board == {}
    assert fill(batch) == ["a"]
    batch.leave("a")
    assert fill(batch) == ["b"]
    batch.leave("b")
    assert fill(batch) == ["c"]


def test_isolated_job_waits_until_the_others_leave() -> None:
    batch = batch_of(3, "a", "b", "c")
    fill(batch)
    batch.restart(["a", "b"], isolated=True)
    assert fill(batch) == []
    batch.leave("c")
    assert fill(batch) == ["a"]


def test_no_job_joins_an_isolated_job() -> None:
    batch = batch_of(3, "a", "b")
    fill(batch)
    batch.restart(["a", "b"], isolated=True)
    fill(batch)
    batch.add(job("c"))
    batch.leave("b")
    assert fill(batch) == []


@pytest.mark.parametrize(("now", "expired"), [(0.9, []), (1.0, ["early"]), (5.0, ["early", "late"])])
def test_waiting_and_admitted_jobs_expire_at_their_deadline(now: float, expired: list[str]) -> None:
    batch: Batch[str] = Batch(1)
    batch.add(job("early", 1.0))
    batch.add(job("late", 2.0))
    fill(batch)
    assert batch.expired(now) == expired
