import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidParameter
from app.pixels import Fit, OutputFormat
from app.request import MAX_STEPS, Img2ImgRequest, parse_request, smallest_steps, smallest_strength, steps_run
from tests.support.fields import accepted


def test_awkward_products_are_those_of_float64() -> None:
    assert steps_run(50, 0.58) == 28
    assert steps_run(49, 1 / 49) == 0
    assert steps_run(10, 0.1) == steps_run(3, 1 / 3) == 1


@pytest.mark.parametrize("steps", range(1, MAX_STEPS + 1))
def test_smallest_strength_in_an_error_is_the_smallest_accepted(steps: int) -> None:
    smallest = smallest_strength(steps)
    assert accepted(steps, smallest)
    assert not accepted(steps, smallest - 0.0001)


@given(st.floats(min_value=0, max_value=1, exclude_min=True))
def test_smallest_steps_in_an_error_are_the_fewest_accepted(strength: float) -> None:
    smallest = smallest_steps(strength)
    if smallest is None:
        assert steps_run(MAX_STEPS, strength) == 0
    else:
        assert steps_run(smallest, strength) >= 1
        assert smallest == 1 or steps_run(smallest - 1, strength) == 0


def test_refusal_names_the_smallest_strength_and_steps() -> None:
    with pytest.raises(InvalidParameter) as error:
        parse_request({"prompt": "", "num_inference_steps": "4", "strength": "0.2"})
    assert "strength of at least 0.25" in error.value.message
    assert "at least 5 steps" in error.value.message
    assert error.value.param == "strength"


def test_refusal_says_when_no_number_of_steps_is_enough() -> None:
    with pytest.raises(InvalidParameter, match="even the maximum of 50 steps is too few"):
        parse_request({"prompt": "", "num_inference_steps": "1", "strength": "0.001"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_inference_steps", value)
        for value in (
            "4.0",
            "4_0",
            " 4",
            "4 ",
            "",
            "four",
            "nan",
            "0",
            "-1",
            "51",
            "1e1",
            "٤",
            "9" * 30,
            4.0,
            True,
            [4],
        )
    ]
    + [
        ("strength", value)
        for value in (
            "nan",
            "inf",
            "-inf",
            "1_0",
            "0",
            "-0.5",
            "1.01",
            "",
            "0,9",
            " 0.9",
            "0x1",
            math.nan,
            math.inf,
            True,
            10**400,
        )
    ]
    + [("guidance_scale", value) for value in ("nan", "-1", "21", "high", -(10**400))]
    + [("seed", value) for value in ("-1", str(2**63), "1.5", "0x2A", "", 10**400)]
    + [("fit", "zoom"), ("output_format", "gif"), ("prompt", "x" * 10_001), ("prompt", 7)],
)
def test_ambiguous_value_is_refused_by_its_field(field: str, value: Any) -> None:
    with pytest.raises(InvalidParameter) as error:
        parse_request({"prompt": "x", field: value})
    assert error.value.param == field
    assert error.value.message.startswith(field)


def test_text_and_json_values_mean_the_same() -> None:
    text = parse_request({"prompt": "x", "num_inference_steps": "3", "strength": ".5e0", "seed": "0"})
    native = parse_request({"prompt": "x", "num_inference_steps": 3, "strength": 0.5, "seed": 0, "fit": None})
    assert text == native
    assert parse_request({"prompt": "x", "strength": 1}).strength == 1.0


def test_defaults_are_those_of_the_service() -> None:
    request = Img2ImgRequest(prompt="x")
    assert (request.num_inference_steps, request.strength, request.guidance_scale) == (4, 0.9, 0.0)
    assert (request.seed, request.fit, request.output_format) == (None, Fit.STRETCH, None)
    assert (request.steps_run, request.unet_rows) == (3, 3)


def test_guidance_above_one_doubles_the_rows() -> None:
    assert Img2ImgRequest(prompt="x", guidance_scale=1.0).unet_rows == 3
    assert Img2ImgRequest(prompt="x", guidance_scale=1.5).unet_rows == 6


def test_unknown_field_is_refused_with_the_closest_name() -> None:
    with pytest.raises(InvalidParameter, match="did you mean 'strength'"):
        parse_request({"prompt": "x", "strenght": "0.5"})
    with pytest.raises(InvalidParameter, match="Known fields: prompt, "):
        parse_request({"prompt": "x", "qqqq": "0.5"})
    with pytest.raises(InvalidParameter, match="did you mean 'cfg_scale'"):
        parse_request({"prompt": "x", "cfg_scal": "0.5"}, ["cfg_scale"])


def test_too_large_number_is_refused() -> None:
    with pytest.raises(
        InvalidParameter, match=r"^seed: '9{30}' is too large; it must be at most 9223372036854775807\.$"
    ):
        parse_request({"prompt": "x", "seed": "9" * 30})


def test_format_has_its_media_type() -> None:
    assert OutputFormat.WEBP.media_type == "image/webp"


ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([10**400, -(10**400), "1e999"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(st.sampled_from(sorted(Img2ImgRequest.model_fields)), ANY_JSON),
    st.dictionaries(st.text(), ANY_JSON),
)
def test_any_value_is_within_its_bounds_or_refused_by_name(known: dict[str, Any], others: dict[str, Any]) -> None:
    try:
        request = parse_request({"prompt": "", **others, **known})
    except InvalidParameter as error:
        refusal = error
    else:
        assert 1 <= request.steps_run <= request.num_inference_steps <= MAX_STEPS
        assert 0 < request.strength <= 1
        assert 0 <= request.guidance_scale <= 20
        assert request.seed is None or 0 <= request.seed < 2**63
        return
    assert refusal.param in {*Img2ImgRequest.model_fields, *(name[:64] for name in others)}
    assert len(refusal.message) < 400
