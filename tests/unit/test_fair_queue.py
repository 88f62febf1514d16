import random

import pytest

from app.engine.fair_queue import FairQueue


def drained(queue: FairQueue[str]) -> list[str]:
    return [queue.pop() for _ in range(len(queue))]


def test_items_of_one_caller_leave_in_their_order() -> None:
    queue: FairQueue[str] = FairQueue()
    for name in "abc":
        queue.push(name, "one", 1)
    assert list(queue) == ["a", "b", "c"]
    assert drained(queue) == ["a", "b", "c"]
    with pytest.raises(IndexError):
        queue.pop()


def test_caller_with_one_item_does_not_wait_for_fifty() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(50):
        queue.push(f"greedy {number}", "greedy", 5)
    for _ in range(7):
        queue.pop()
    queue.push("modest", "modest", 5)
    assert queue.pop() == "modest"


def test_callers_share_by_work_and_not_by_number_of_items() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(10):
        queue.push("heavy", "heavy", 10)
        queue.push("light", "light", 2)
    first = [queue.pop() for _ in range(12)]
    # Ten light ones are as much work as two heavy ones.
    assert first.count("light") == 10
    assert first.count("heavy") == 2


def test_caller_that_was_away_has_no_credit() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push("early", "returns", 1)
    queue.pop()
    for _ in range(10):
        queue.push("steady", "steady", 1)
    for _ in range(5):
        queue.pop()
    for _ in range(5):
        queue.push("back", "returns", 1)
    assert sorted([queue.pop() for _ in range(6)]) == ["back"] * 3 + ["steady"] * 3


def test_pushed_first_leaves_first_and_removed_does_not_leave() -> None:
    queue: FairQueue[str] = FairQueue()
    a, b, c = "a", "b", "c"
    queue.push(a, "one", 1)
    queue.push(b, "two", 1)
    queue.push_first(c)
    queue.remove(a)
    queue.remove("not there")
    assert len(queue) == 2
    assert drained(queue) == ["c", "b"]
    queue.push_first(c)
    queue.remove(c)
    assert not len(queue)


def test_queue_in_turn_lists_what_pop_returns_and_changes_nothing() -> None:
    draw = random.Random(0)
    for _ in range(50):
        queue: FairQueue[int] = FairQueue()
        for number in range(60):
            # Few callers and few costs: many tags are equal.
            queue.push(number, f"caller {draw.randrange(9)}", draw.randrange(1, 4))
            if draw.random() < 0.3:
                queue.push_first(queue.pop())
            if draw.random() < 0.2:
                queue.pop()
        listed = list(queue.in_turn())
        assert list(queue.in_turn()) == listed
        assert [queue.pop() for _ in range(len(queue))] == listed


def test_random_use_loses_no_item_and_forgets_each_caller() -> None:
    draw = random.Random(0)
    queue: FairQueue[int] = FairQueue()
    inside: set[int] = set()
    for number in range(5000):
        if draw.random() < 0.5:
            queue.push(number, f"caller {draw.randrange(40)}", draw.randrange(1, 60))
            inside.add(number)
        elif draw.random() < 0.1 and inside:
            gone = draw.choice(sorted(inside))
            # The very object that was put in, as with tickets.
            queue.remove(next(item for item in queue if item == gone))
            inside.discard(gone)
        elif len(queue):
            inside.remove(queue.pop())
        assert len(queue) == len(inside)
    while len(queue):
        inside.remove(queue.pop())
    assert not inside
    for number in range(100):
        queue.push(number, "last", 60)
        queue.pop()
    assert len(queue._lines) <= 1
