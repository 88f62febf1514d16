"""Numbers of the OpenAI dialect, without a server."""

import pytest

from app.errors import InvalidParameter
from app.routes.openai.fields import parse_edit
from app.routes.openai.routes import spread


@pytest.mark.parametrize(
    ("steps", "count", "shown"),
    [(8, 3, {2, 4, 6}), (4, 1, {2}), (3, 3, {1, 2}), (1, 3, set()), (50, 2, {17, 33}), (4, 0, set()), (2, 1, {1})],
)
def test_previews_are_spread_over_the_steps(steps: int, count: int, shown: set[int]) -> None:
    assert spread(steps, count) == shown


def test_seeds_start_again_behind_the_last_one() -> None:
    asked = parse_edit({"image": b"x"}, {"prompt": "", "n": "2", "seed": str(2**63 - 1)})
    assert [one.seed for one in asked.requests] == [2**63 - 1, 0]
    with pytest.raises(InvalidParameter):
        parse_edit({"picture": b"x"}, {"prompt": ""})
