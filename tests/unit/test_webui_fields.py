"""Fields of the web UI's API, without a server."""

import math

import pytest

from app.errors import InvalidParameter
from app.infotext import parse_infotext
from app.routes.webui.fields import parse_webui


@pytest.mark.parametrize(("strength", "steps"), [(0.75, 4), (0.2, 5), (0.02, 50), (1.0, 4), (0.3334, 4)])
def test_low_strength_gets_enough_steps_for_one(strength: float, steps: int) -> None:
    asked = parse_webui({"init_images": [""], "denoising_strength": strength, "steps": 20}, "Euler a")
    assert asked.requests[0].num_inference_steps == steps
    assert asked.requests[0].steps_run >= 1


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("a cat\nSteps: 4, Seed: 1", {"Prompt": "a cat", "Negative prompt": "", "Steps": "4", "Seed": "1"}),
        ('x\nSteps: 1, Model: "a, b: c"', {"Prompt": "x", "Negative prompt": "", "Steps": "1", "Model": "a, b: c"}),
        ("only words", {"Prompt": "only words", "Negative prompt": ""}),
        ("Negative prompt: no\nSteps: 2", {"Prompt": "", "Negative prompt": "no", "Steps": "2"}),
        ("", {"Prompt": "", "Negative prompt": ""}),
        ('Steps: 1, Model: "broken', {"Prompt": "", "Negative prompt": "", "Steps": "1", "Model": '"broken'}),
    ],
)
def test_notation_is_read_back(text: str, facts: dict[str, str]) -> None:
    assert parse_infotext(text) == facts


def test_fields_of_the_wrong_kind_are_named() -> None:
    for name, value in (
        *(("n_iter", True), ("batch_size", "two"), ("alwayson_scripts", 5)),
        *(("cfg_scale", math.nan), ("denoising_strength", math.nan), ("cfg_scale", True), ("steps", math.inf)),
    ):
        with pytest.raises(InvalidParameter) as caught:
            parse_webui({"init_images": [""], name: value}, "Euler a")
        assert caught.value.param == name
