from typing import Any

import pytest

from app.engine.messages import Job
from app.model.batch_limit import capacity
from app.pixels import Pixels
from app.worker.batch import Batch


def job(name: str, deadline: float = 100.0) -> Job:
    return Job(name, Pixels(8, 8, bytes(192)), "", None, 4, 0.9, 0.0, 0, deadline)


def fill(batch: Batch[str]) -> list[str]:
    """Admit all that may come on board now; their names."""
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


def test_jobs_come_on_board_in_order_up_to_the_capacity() -> None:
    batch = batch_of(2, "a", "b", "c")
    assert fill(batch) == ["a", "b"]
    assert fill(batch) == []


def test_the_next_job_boards_as_soon_as_one_leaves() -> None:
    batch = batch_of(2, "a", "b", "c", "d")
    fill(batch)
    batch.leave("b")
    assert fill(batch) == ["c"]
    assert list(batch.on_board) == ["a", "c"]


def test_a_job_that_leaves_while_it_waits_never_boards() -> None:
    batch = batch_of(1, "a", "b", "c")
    fill(batch)
    batch.leave("b")
    batch.leave("a")
    assert fill(batch) == ["c"]


def test_a_job_that_is_being_encoded_holds_its_place() -> None:
    batch = batch_of(1, "a", "b")
    taken = batch.next()
    assert taken is not None
    assert batch.next() is None
    assert not batch.idle
    batch.leave("a")
    assert fill(batch) == ["b"]


def test_leaving_twice_or_unknown_changes_nothing() -> None:
    batch = batch_of(2, "a")
    batch.leave("unknown")
    fill(batch)
    batch.leave("a")
    batch.leave("a")
    assert batch.idle


def test_a_batch_is_idle_only_with_nobody_waiting_or_on_board() -> None:
    batch = batch_of(1, "a")
    assert not batch.idle
    fill(batch)
    assert not batch.idle
    batch.leave("a")
    assert batch.idle


def test_suspects_start_anew_alone_and_before_all_others() -> None:
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


def test_a_suspect_waits_until_the_others_are_off() -> None:
    batch = batch_of(3, "a", "b", "c")
    fill(batch)
    batch.restart(["a", "b"], isolated=True)
    assert fill(batch) == []
    batch.leave("c")
    assert fill(batch) == ["a"]


def test_nobody_joins_a_suspect_on_board() -> None:
    batch = batch_of(3, "a", "b")
    fill(batch)
    batch.restart(["a", "b"], isolated=True)
    fill(batch)
    batch.add(job("c"))
    batch.leave("b")
    assert fill(batch) == []


@pytest.mark.parametrize(("now", "expired"), [(0.9, []), (1.0, ["early"]), (5.0, ["early", "late"])])
def test_a_job_expires_at_its_deadline_wherever_it_is(now: float, expired: list[str]) -> None:
    batch: Batch[str] = Batch(1)
    batch.add(job("early", 1.0))
    batch.add(job("late", 2.0))
    fill(batch)
    assert batch.expired(now) == expired


@pytest.mark.parametrize(
    ("max_batch", "device", "large", "jobs"),
    [
        ("auto", "cpu", False, 4),
        ("auto", "cpu", True, 1),
        ("auto", "cuda", False, 4),
        ("auto", "cuda:1", True, 4),
        (3, "cpu", True, 3),
    ],
)
def test_how_many_share_a_call_follows_from_the_device_and_the_model_unless_it_is_set(
    max_batch: Any, device: str, large: bool, jobs: int
) -> None:
    assert capacity(max_batch, device, large=large) == jobs
