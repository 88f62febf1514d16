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
def test_opaque_image_becomes_the_pixels_of_diffusers(
    make: Callable[[Image.Image], bytes], size: Size, mode: str
) -> None:
    from diffusers.utils import load_image

    data = make(noise(size, mode))
    assert decoded(data).tobytes() == load_image(opened(data)).resize((512, 512)).tobytes()


@pytest.mark.parametrize("size", [(1022, 1100), (4000, 800), (2047, 2100)])
def test_jpeg_decoded_at_full_scale_equals_diffusers(size: Size) -> None:
    from diffusers.utils import load_image

    data = saved(noise((99, 99)).resize(size), "JPEG")
    assert decoded(data).tobytes() == load_image(opened(data)).resize((512, 512)).tobytes()
