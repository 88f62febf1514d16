"""The choice of the batch limit."""

import pytest

from app.model.batch_limit import choose


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 1.0, 2: 2.0, 4: 4.0}, 1),
        ({1: 1.0, 2: 1.9, 4: 3.7}, 1),
        ({1: 1.0, 2: 1.2, 4: 2.3}, 2),
        ({1: 1.0, 2: 1.6, 4: 2.4}, 4),
        ({1: 1.0, 2: 1.0, 4: 1.0}, 4),
        ({1: 1.0, 2: 3.0, 4: 9.0}, 1),
    ],
)
def test_smallest_number_near_the_best_rate_is_chosen(seconds: dict[int, float], best: int) -> None:
    assert choose(seconds) == best
