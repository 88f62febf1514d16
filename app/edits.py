"""The values that routes and the service exchange."""

import secrets
from dataclasses import dataclass, field

from app.pixels import OutputFormat


class Upload:
    """An uploaded file until it is decoded. A request may wait for long after that, and the pixels are far smaller.

    Args:
        data: the bytes of the file.
        uses: how many edits take it; the last one releases it.
    """

    def __init__(self, data: bytes, uses: int = 1) -> None:
        self._left = [data] * uses

    def take(self) -> bytes:
        """The bytes, for one of the edits. Raises `IndexError` for one more than were announced."""
        return self._left.pop()


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """The context of a request.

    Attributes:
        request_id: names it in the log.
        caller: the client, by its key or address; clients share the queue.
        timeout: seconds that the client will wait; None leaves it to the service.
    """

    request_id: str
    caller: str = ""
    timeout: float | None = None
    # Clients choose the request's id; a job's has to be unique.
    _suffix: str = field(default_factory=lambda: secrets.token_hex(4), repr=False)

    @property
    def job_id(self) -> str:
        """The id of its job in the engine."""
        return f"{self.request_id}.{self._suffix}"


@dataclass(frozen=True, slots=True)
class Queued:
    """The request waits; `ahead` others are before it."""

    ahead: int


@dataclass(frozen=True, slots=True)
class EncodedPreview:
    """A preview as a file."""

    data: bytes = field(repr=False)
    width: int
    height: int

    @property
    def size(self) -> str:
        """As `512x512`."""
        return f"{self.width}x{self.height}"


@dataclass(frozen=True, slots=True)
class StepDone:
    """`step` of `steps` UNet calls are done. `preview` shows the image as it was predicted then.

    A preview comes by itself, after the step that it shows and maybe after the next one.
    """

    step: int
    steps: int
    preview: EncodedPreview | None = None


@dataclass(frozen=True, slots=True)
class EditedImage:
    """An image as a file.

    Attributes:
        data: the bytes of the file.
        output_format: the file format.
        width: in pixels.
        height: in pixels.
        seed: makes the same image again.
        steps_run: UNet calls.
        start_timestep: the noise level that the run started from.
        tokens_cut: tokens of the prompt that were not read.
        seconds: the time of each stage, by its name in `Server-Timing`, in their order.
        infotext: says how it was made, in the notation of AUTOMATIC1111's web UI.
    """

    data: bytes = field(repr=False)
    output_format: OutputFormat
    width: int
    height: int
    seed: int
    steps_run: int
    start_timestep: float
    tokens_cut: int
    seconds: dict[str, float]
    infotext: str = field(repr=False)

    @property
    def size(self) -> str:
        """As `512x512`."""
        return f"{self.width}x{self.height}"

    @property
    def filename(self) -> str:
        """A name for the file that tells one seed from another."""
        return f"img2img-{self.seed}.{self.output_format.value}"
