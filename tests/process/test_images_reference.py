"""An upload becomes the same pixels as with diffusers' own loader."""

from collections.abc import Callable

import pytest
from PIL import Image

from tests.support.images import (
    Size,
    decoded,
    every_format,
    noise,
    opened,
    saved,
)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(512, 512), (1, 1), (37, 91), (640, 480)])
@every_format
def test_an_opaque_picture_becomes_what_load_image_and_resize_of_diffusers_make(
    make: Callable[[Image.Image], bytes], size: Size, mode: str
) -> None:
    from diffusers.utils import load_image

    data = make(noise(size, mode))
    assert decoded(data).tobytes() == load_image(opened(data)).resize((512, 512)).tobytes()


@pytest.mark.parametrize("size", [(1022, 1100), (4000, 800), (2047, 2100)])
def test_a_jpeg_under_1024_pixels_or_odd_on_either_side_equals_the_reference(size: Size) -> None:
    from diffusers.utils import load_image

    data = saved(noise((99, 99)).resize(size), "JPEG")
    assert decoded(data).tobytes() == load_image(opened(data)).resize((512, 512)).tobytes()
