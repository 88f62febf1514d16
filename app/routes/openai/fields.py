"""The parts of a form of OpenAI's to what is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass

from app.edits import Upload
from app.errors import InvalidParameter
from app.pixels import OutputFormat
from app.request import Img2ImgRequest, parse_request, with_consecutive_seeds
from app.routes.openai.models import EditFields, Hints, OutputFields
from app.web.fields import choice, integer, names

IMAGE = ("image", "image[]", "image[0]")
"""What SDKs call an image: alone, or in a list."""

_MASK = ("mask", "mask_image")
"""Other servers of this API have the second name."""

_FIELDS = names(EditFields)
_HINTS = names(Hints)

ONE_IMAGE = "Send one image, as the file 'image'."


@dataclass(frozen=True, slots=True)
class EditRequest:
    """What a form asks for.

    Attributes:
        image: the uploaded file.
        requests: one for each image, of seeds that follow each other.
        model: the name of the model in the form.
        url: whether images come as data: URLs, instead of plain base64.
        stream: whether they come as events.
        partial_images: how many previews come before.
    """

    image: Upload
    requests: tuple[Img2ImgRequest, ...]
    model: str | None
    url: bool
    stream: bool
    partial_images: int

    @property
    def output_format(self) -> OutputFormat:
        """The format of all images."""
        return self.requests[0].output_format or OutputFormat.PNG


def parse_edit(files: Mapping[str, bytes], fields: Mapping[str, str]) -> EditRequest:
    """The parts of a form to what is asked for.

    Raises:
        InvalidParameter: names the part that cannot be honoured, and says what can.
    """
    sent = {name: value for name, value in fields.items() if name not in _HINTS}
    image = _image(files, sent)
    count = integer(sent, EditFields, "n")
    partial_images = integer(sent, EditFields, "partial_images")
    stream = choice(sent, EditFields, "stream") == "true"
    if stream and count > 1:
        raise InvalidParameter("A stream has one image: send n=1, or no stream.", param="n")
    if partial_images and not stream:
        raise InvalidParameter("partial_images come with stream=true only.", param="partial_images")
    for name in ("size", "background"):
        choice(sent, EditFields, name)
    url = choice(sent, EditFields, "response_format") == "url"
    if stream and url:
        raise InvalidParameter("A stream has no URLs: leave response_format out, or stream.", param="response_format")
    compression = integer(sent, EditFields, "output_compression")
    native = {name: value for name, value in sent.items() if name not in _FIELDS or name == "image"}
    defaults = OutputFields()
    request = parse_request({"prompt": "", "output_format": defaults.output_format, **native}, _FIELDS)
    if request.output_format is OutputFormat.PNG:
        # SDKs may send 100, which takes nothing away from it.
        if compression < 100:
            raise InvalidParameter(
                "A PNG has no output_compression: leave it out, or send output_format=webp or jpeg.",
                param="output_compression",
            )
    elif "output_compression" in sent:
        request = request.model_copy(update={"quality": max(1, compression)})
    return EditRequest(
        Upload(image, count), with_consecutive_seeds(request, count), sent.get("model"), url, stream, partial_images
    )


def _image(files: Mapping[str, bytes], fields: Mapping[str, str]) -> bytes:
    for name in _MASK:
        if name in files or name in fields:
            raise InvalidParameter("A mask cannot be honoured: the whole image is redrawn. Leave it out.", param=name)
    if "url" in fields:
        raise InvalidParameter("Nothing is fetched from an address: send the image as the file 'image'.", param="url")
    if others := sorted(name for name in files if name.partition("[")[0] != "image"):
        raise InvalidParameter(f"The file '{others[0][:64]}' cannot be used. Leave it out.", param=others[0][:64])
    images = [name for name in IMAGE if name in files]
    if len(images) != 1 or len(files) != 1:
        raise InvalidParameter(ONE_IMAGE, param="image")
    return files[images[0]]
