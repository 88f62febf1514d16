"""What an upload becomes on its way in, what is refused, and what a finished picture carries on its way out."""

import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree

import piexif
import piexif.helper
import pytest
from PIL import ExifTags, Image, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo

from app.errors import ImageTooLarge, InvalidImage, UnsupportedImageFormat
from app.imaging import decoder_process
from app.imaging.decode import decode_image, read_parameters
from app.imaging.encode import Marks, encode_image
from app.infotext import infotext
from app.pixels import Fit, OutputFormat, Pixels
from app.request import Img2ImgRequest
from tests.support.images import (
    LIMIT,
    MODES,
    Size,
    decoded,
    every_format,
    noise,
    opened,
    orientation,
    png,
    saved,
)

AI_SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
TEXT = "a café, 小狗 🐶\nNegative prompt: blurry\nSteps: 4, Seed: 42"


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(1024, 1024), (1500, 1102), (4100, 2100)])
def test_jpeg_at_a_reduced_scale_is_close_to_the_full_decode(size: Size, mode: str) -> None:
    data = saved(noise((9, 9)).resize(size).convert(mode), "JPEG", quality=95)
    full = opened(data).convert("RGB").resize((512, 512))
    assert max(abs(a - b) for a, b in zip(decoded(data).tobytes(), full.tobytes(), strict=True)) <= 6


@pytest.mark.parametrize("value", range(1, 9))
@every_format
def test_each_exif_orientation_is_turned_upright(make: Callable[[Image.Image], bytes], value: int) -> None:
    file_format = str(opened(make(noise((1, 1)))).format)
    data = saved(noise((24, 16)), file_format, exif=orientation(value))
    stored = opened(data).convert("RGB")
    width, height = stored.size
    right, bottom = width - 1, height - 1
    upright = Image.new("RGB", (height, width) if value > 4 else (width, height))
    for x in range(width):
        for y in range(height):
            places = (x, y), (right - x, y), (right - x, bottom - y), (x, bottom - y)
            turned = (y, x), (bottom - y, x), (bottom - y, right - x), (y, right - x)
            upright.putpixel((places + turned)[value - 1], stored.getpixel((x, y)) or 0)
    assert decoded(data) == upright.resize((512, 512))


def test_malformed_exif_is_ignored() -> None:
    image = noise((20, 30))
    assert decoded(saved(image, "PNG", exif=b"Exif\0\0garbage!")) == decoded(saved(image, "PNG"))


def test_orientation_is_applied_beside_a_broken_exif_tag() -> None:
    exif = orientation(6)
    exif[ExifTags.Base.Make] = "maker"
    broken = exif.tobytes().replace(b"\x01\x0f\0\2", b"\x01\x02\0\2")
    image = noise((20, 30))
    upright = image.transpose(Image.Transpose.ROTATE_270)
    assert decoded(saved(image, "PNG", exif=broken)) == decoded(saved(upright, "PNG"))


@pytest.mark.parametrize(("data", "colour"), MODES.values(), ids=MODES)
def test_each_mode_becomes_rgb_with_transparency_on_white(data: bytes, colour: tuple[int, int, int]) -> None:
    assert decoded(data).getcolors() == [(512 * 512, colour)]


def test_16_bit_greyscale_keeps_its_high_bytes() -> None:
    ramp = b"\0" + b"".join(struct.pack(">H", 257 * x) for x in range(256))
    shades = Image.frombytes("L", (256, 1), bytes(range(256)))
    assert decoded(png((256, 1), 16, 0, ramp)) == shades.resize((512, 512)).convert("RGB")


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "MPO"])
def test_first_of_several_frames_is_decoded(file_format: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")]
    data = saved(frames[0], file_format, save_all=True, append_images=frames[1:])
    assert getattr(opened(data), "n_frames", 1) == 3
    assert decoded(data).getpixel((256, 256)) == opened(data).convert("RGB").getpixel((16, 16))


def test_colour_profile_is_ignored() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert decoded(saved(noise((9, 9)), "PNG", icc_profile=profile)) == decoded(saved(noise((9, 9)), "PNG"))


@pytest.mark.parametrize("size", [(700, 512), (512, 700), (33, 97), (900, 901), (1, 1), (512, 512)])
def test_crop_takes_the_centre_and_pad_keeps_all(size: Size) -> None:
    data = saved(noise(size), "PNG")
    assert decoded(data, Fit.CROP) == ImageOps.fit(noise(size), (512, 512), Image.Resampling.BICUBIC)
    assert decoded(data, Fit.PAD) == ImageOps.pad(noise(size), (512, 512), Image.Resampling.BICUBIC, "white")


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1)])
@pytest.mark.parametrize("fit", Fit)
def test_thinnest_image_keeps_one_pixel(fit: Fit, size: Size) -> None:
    colours = {colour for _, colour in decoded(saved(Image.new("RGB", size, "red"), "PNG"), fit).getcolors() or []}
    assert colours == ({(255, 0, 0), (255, 255, 255)} if fit is Fit.PAD else {(255, 0, 0)})


def exif_text(image: Image.Image) -> str | None:
    """The text in EXIF `UserComment`, read as AUTOMATIC1111's web UI reads it, by the library that it does so with."""
    if "exif" not in image.info:
        return None
    comment = piexif.load(image.info["exif"])["Exif"].get(ExifTags.Base.UserComment)
    return str(piexif.helper.UserComment.load(comment)) if comment else None


def text_of(picture: bytes) -> str | None:
    image = opened(picture)
    return image.info.get("parameters") if image.format == "PNG" else exif_text(image)


def written(pixels: Pixels, output_format: OutputFormat, parameters: str | None) -> bytes:
    with ThreadPoolExecutor(1) as helper:
        return encode_image(pixels, output_format, Marks(parameters), helper)


def smooth() -> Pixels:
    return Pixels(512, 512, noise((9, 9)).resize((512, 512)).tobytes())


@pytest.mark.parametrize("size", [(512, 512), (8, 8), (3, 5), (1, 2)])
def test_png_is_lossless(size: tuple[int, int]) -> None:
    pixels = Pixels(*size, noise(size).tobytes())
    picture = written(pixels, OutputFormat.PNG, TEXT)
    assert opened(picture).tobytes() == pixels.data
    # Readers differ in what they check; zlib checks its own sum, which Pillow leaves alone.
    start = picture.index(b"IDAT")
    deflated = picture[start + 4 : start + 4 + int.from_bytes(picture[start - 4 : start], "big")]
    assert len(zlib.decompress(deflated)) == size[1] * (1 + 3 * size[0])


@pytest.mark.parametrize("output_format", [OutputFormat.WEBP, OutputFormat.JPEG])
def test_webp_and_jpeg_are_close_to_the_pixels(output_format: OutputFormat) -> None:
    image = opened(written(smooth(), output_format, None)).convert("RGB")
    errors = [abs(a - b) for a, b in zip(image.tobytes(), smooth().data, strict=True)]
    assert sum(errors) / len(errors) < 2


@pytest.mark.parametrize("output_format", OutputFormat)
def test_file_has_the_format_and_is_marked_as_ai_generated(output_format: OutputFormat) -> None:
    image = opened(written(smooth(), output_format, None))
    assert Image.MIME[str(image.format)] == output_format.media_type
    (description,) = ElementTree.fromstring(image.info["xmp"]).iter(
        "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"
    )
    assert description.get("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType") == AI_SOURCE


@pytest.mark.parametrize("output_format", OutputFormat)
def test_parameters_are_read_back_in_any_script(output_format: OutputFormat) -> None:
    assert text_of(written(smooth(), output_format, TEXT)) == TEXT
    assert text_of(written(smooth(), output_format, None)) is None


def test_parameters_longer_than_a_jpeg_segment_are_left_out() -> None:
    fits, exceeds = "🐶" * 16_300, "🐶" * 20_000
    assert text_of(written(smooth(), OutputFormat.JPEG, fits)) == fits
    assert text_of(written(smooth(), OutputFormat.JPEG, exceeds)) is None
    assert text_of(written(smooth(), OutputFormat.WEBP, exceeds)) == exceeds
    assert text_of(written(smooth(), OutputFormat.PNG, exceeds)) == exceeds


@pytest.mark.parametrize("output_format", list(OutputFormat))
def test_file_without_marks_has_no_metadata(output_format: OutputFormat) -> None:
    pixels = decode_image(saved(noise((9, 9)), "PNG"), Fit.STRETCH, LIMIT)
    with ThreadPoolExecutor() as helper:
        bare = encode_image(pixels, output_format, Marks(None, generated=False), helper)
        marked = encode_image(pixels, output_format, Marks(), helper)
    assert b"DigitalSourceType" in marked
    assert b"DigitalSourceType" not in bare


@pytest.mark.parametrize("output_format", OutputFormat)
def test_only_the_pixels_of_an_upload_come_out(output_format: OutputFormat) -> None:
    secret = "private-7f3a"
    info, exif = PngInfo(), orientation(1)
    info.add_text("Comment", secret)
    info.add_itxt("XML:com.adobe.xmp", secret)
    exif[ExifTags.Base.Artist] = secret
    upload = saved(noise((9, 9)), "PNG", pnginfo=info, exif=exif, icc_profile=secret.encode())
    picture = written(decode_image(upload, Fit.STRETCH, LIMIT), output_format, None)
    assert secret.encode() in upload
    assert secret.encode() not in picture
    assert not {"Comment", "exif", "icc_profile"} & set(opened(picture).info)


def test_infotext_has_the_notation_of_the_web_ui() -> None:
    request = Img2ImgRequest(prompt="a dog,\na wizard", negative_prompt="blurry", strength=0.9)
    assert infotext(request, 42, (512, 512), "sdxl-turbo", "Euler a", "1.2.3") == (
        "a dog,\na wizard\n"
        "Negative prompt: blurry\n"
        "Steps: 4, Sampler: Euler a, CFG scale: 0, Seed: 42, Size: 512x512, Model: sdxl-turbo, "
        "Denoising strength: 0.9, Version: img2img 1.2.3"
    )


def test_infotext_without_negative_prompt_quotes_separators() -> None:
    text = infotext(Img2ImgRequest(prompt="x", guidance_scale=1.5), 0, (640, 512), "a, b: ü", "DPM++ 2M", "1")
    assert text.splitlines() == [
        "x",
        'Steps: 4, Sampler: DPM++ 2M, CFG scale: 1.5, Seed: 0, Size: 640x512, Model: "a, b: ü", '
        "Denoising strength: 0.9, Version: img2img 1",
    ]


class TestParameters:
    """In this process; the service has it done by a decoder."""

    @pytest.mark.parametrize("output_format", list(OutputFormat))
    def test_written_parameters_are_read_back(self, output_format: OutputFormat) -> None:
        pixels = decode_image(saved(noise((9, 9)), "PNG"), Fit.STRETCH, LIMIT)
        with ThreadPoolExecutor() as helper:
            file = encode_image(pixels, output_format, Marks("größer ✨\nSteps: 4"), helper)
            bare = encode_image(pixels, output_format, Marks(), helper)
        assert read_parameters(file, LIMIT) == "größer ✨\nSteps: 4"
        assert read_parameters(bare, LIMIT) == ""

    def test_comment_is_read_by_its_character_code(self) -> None:
        exif = Image.Exif()
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"ASCII\0\0\0a cat\0"
        assert read_parameters(saved(noise((9, 9)), "JPEG", exif=exif), LIMIT) == "a cat"
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = 5
        assert read_parameters(saved(noise((9, 9)), "JPEG", exif=exif), LIMIT) == ""

    def test_unreadable_file_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(UnsupportedImageFormat):
            read_parameters(b"GIF89a", LIMIT)
        with pytest.raises(InvalidImage):
            read_parameters(b"\x89PNG\r\n\x1a\n", LIMIT)
        with pytest.raises(ImageTooLarge):
            read_parameters(saved(noise((9, 9)), "PNG"), 10)
        with pytest.raises(ImageTooLarge, match=r"the limit is 89.4785 megapixels"):
            read_parameters(png((20_000, 20_000), 8, 2, b""), 10**9)

        def starve(*arguments: object, **options: object) -> Image.Image:
            raise MemoryError

        monkeypatch.setattr(Image, "open", starve)
        with pytest.raises(MemoryError):
            read_parameters(saved(noise((9, 9)), "PNG"), LIMIT)

    def test_decoder_process_answers_with_the_parameters(self) -> None:
        assert decoder_process._answer(saved(noise((9, 9)), "PNG"), decoder_process.READ, LIMIT) == (
            decoder_process.FOUND,
            b"",
        )
