"""Decodes uploads in processes of their own: `app.imaging.decoder_process`, from the service's side."""

import asyncio
import logging
import math
import signal
import subprocess
import time
from collections.abc import Callable

from app.errors import DeadlineExceeded, InvalidImage, Unavailable
from app.imaging.decoder_process import ERRORS, FITS, FOUND, MAX_TEXT, READ, REPLY, REQUEST
from app.imaging.fair_slots import FairSlots
from app.pixels import IMAGE_SIZE, Fit, Pixels
from app.subprocesses import ChildProcess

logger = logging.getLogger(__name__)

DECODE_SECONDS = 30.0
"""Longer than any image within the limits takes on a slow and busy machine."""

_TRIES = 2
_GRACE_SECONDS = 1.0
"""For an image that no request waits for any more: most are decoded by then, and a decoder costs more to replace."""

_LAST_SECONDS = 1.0
"""For a decoder to end by itself once its socket is closed, so that its exit code says why."""

_PIXELS_LENGTH = IMAGE_SIZE * IMAGE_SIZE * 3


class _DecoderDied(Exception):
    """The process ended, or sent a malformed answer."""


class DecoderPool:
    """Decoder processes, shared fairly between callers. Lives on one event loop.

    Args:
        max_pixels: limit of an upload's width x height.
        count: images of one caller that are decoded at once; there is one more slot for another caller.
        on_death: called for each decoder that dies.
    """

    def __init__(self, max_pixels: int, count: int, on_death: Callable[[], None]) -> None:
        self._max_pixels = max_pixels
        self._count = count
        self._on_death = on_death
        self._slots = FairSlots(count + 1)
        self._idle: list[_Decoder] = []
        self._closed = False

    async def start(self) -> None:
        """Start the decoders, so that no request has to wait for one.

        Raises:
            OSError: the system cannot start another process.
        """
        self._idle += await asyncio.gather(*(_Decoder.spawn(self._max_pixels) for _ in range(self._count)))

    async def decode(self, data: bytes, fit: Fit, deadline: float = math.inf, caller: str = "") -> Pixels:
        """As `app.imaging.decode.decode_image`, which describes the result and the errors of a bad image.

        An image at which a decoder dies is tried once more, since something else may have killed it, and is then
        refused as `InvalidImage`. One that takes too long is not tried again. When no request waits for it any more,
        its decoder has a moment to finish and is then killed; its caller's slot is held until then.

        Args:
            data: the bytes of the file.
            fit: how it becomes a square.
            deadline: a reading of `time.monotonic()`.
            caller: shares the slots with other callers.

        Raises:
            DeadlineExceeded: it was not decoded before its deadline.
            Unavailable: something other than the image killed the decoder, twice.
        """
        return Pixels(IMAGE_SIZE, IMAGE_SIZE, await self._ask(data, FITS.index(fit), deadline, caller))

    async def parameters(self, data: bytes, caller: str = "") -> str:
        """As `app.imaging.decode.read_parameters`, by the same rules."""
        return (await self._ask(data, READ, math.inf, caller)).decode(errors="replace")

    async def _ask(self, data: bytes, what: int, deadline: float, caller: str) -> bytes:
        seconds = None if math.isinf(deadline) else deadline - time.monotonic()
        has_slot = asyncio.Event()
        decoding = asyncio.create_task(self._decode(data, what, caller, has_slot))
        # asyncio logs an exception that is never retrieved.
        decoding.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(decoding)
        except TimeoutError:
            raise DeadlineExceeded(
                "The image was not read in time. Send a smaller one, or try again when the service is less busy.",
                retry_after=5,
            ) from None
        finally:
            if not decoding.done():
                asyncio.get_running_loop().call_later(_GRACE_SECONDS if has_slot.is_set() else 0, decoding.cancel)

    async def _decode(self, data: bytes, what: int, caller: str, has_slot: asyncio.Event) -> bytes:
        codes = []
        async with self._slots.slot(caller):
            has_slot.set()
            for _ in range(_TRIES):
                decoder = await self._acquire()
                try:
                    async with asyncio.timeout(DECODE_SECONDS):
                        kind, body = await decoder.ask(data, what)
                except _DecoderDied as death:
                    codes.append(await self._reap(decoder, str(death)))
                    if codes[-1] == -signal.SIGXCPU:
                        raise _takes_too_long() from None
                    continue
                except TimeoutError:
                    await self._reap(decoder, f"it did not answer within {DECODE_SECONDS:g} s", kill=True)
                    raise _takes_too_long() from None
                except asyncio.CancelledError:
                    await decoder.ended(kill=True)
                    # The next request finds a decoder that has started.
                    self._release(await _Decoder.spawn(self._max_pixels))
                    raise
                self._release(decoder)
                if kind == FOUND:
                    return body
                raise ERRORS[kind - 1](body.decode(errors="replace"), param="image")
        if set(codes) == {-signal.SIGKILL}:
            # An image cannot cause that: a decoder at its limits ends by itself or by other signals.
            raise Unavailable("The image decoder was killed twice. Try again in a moment.", retry_after=5)
        raise InvalidImage(
            "The image cannot be read: it makes the decoder fail. Save it anew, and send that.", param="image"
        )

    async def _acquire(self) -> "_Decoder":
        """A decoder that runs. Where the machine has too little memory, idle ones are the first that it kills."""
        while self._idle:
            decoder = self._idle.pop()
            if decoder.exit_code is None:
                return decoder
            logger.error("decoder %d died: it was killed while idle", decoder.pid)
            decoder.close()
            self._on_death()
        return await _Decoder.spawn(self._max_pixels)

    def _release(self, decoder: "_Decoder") -> None:
        if self._closed:
            decoder.close()
        else:
            self._idle.append(decoder)

    async def _reap(self, decoder: "_Decoder", cause: str, *, kill: bool = False) -> int | None:
        """End a decoder that failed; returns what `_Decoder.ended` does."""
        code = await decoder.ended(kill=kill)
        logger.error("decoder %d died with exit code %s: %s", decoder.pid, code, cause)
        self._on_death()
        return code

    def close(self) -> None:
        """End the idle decoders now, and the others when they have finished."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()


def _takes_too_long() -> InvalidImage:
    return InvalidImage("The image takes too long to read. Save it anew, and send that.", param="image")


class _Decoder:
    """One process, and the exchange with it."""

    def __init__(self, child: ChildProcess) -> None:
        self._child = child
        self.close = child.close

    @classmethod
    async def spawn(cls, max_pixels: int) -> "_Decoder":
        child = await ChildProcess.spawn(
            "app.imaging.decoder_process",
            str(max_pixels),
            # Neither keys nor tokens of this process.
            environment={},
            stdout=subprocess.DEVNULL,
            # Without `site`, a decoder has a few modules less.
            options=["-S"],
        )
        return cls(child)

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._child.exit_code

    async def ask(self, data: bytes, what: int) -> tuple[int, bytes]:
        """Send a file; returns the kind of the answer, and its body.

        Args:
            data: the bytes of the file.
            what: the index of a `Fit`, or `READ`.

        Raises:
            _DecoderDied: there is no answer, or a malformed one.
        """
        loop, end = asyncio.get_running_loop(), self._child.socket
        try:
            await loop.sock_sendall(end, REQUEST.pack(len(data), what))
            await loop.sock_sendall(end, data)
            kind, length = REPLY.unpack(await self._receive(REPLY.size))
            most, pixels = (MAX_TEXT, False) if kind or what == READ else (_PIXELS_LENGTH, True)
            if kind > len(ERRORS) or length > most or (pixels and length != most):
                raise _DecoderDied("its answer is malformed")
            return kind, await self._receive(length)
        except OSError as error:
            raise _DecoderDied(str(error)) from error

    async def _receive(self, length: int) -> bytes:
        loop, body, filled = asyncio.get_running_loop(), bytearray(length), 0
        while filled < length:
            received = await loop.sock_recv_into(self._child.socket, memoryview(body)[filled:])
            if not received:
                raise _DecoderDied("its answer ended too soon")
            filled += received
        return bytes(body)

    async def ended(self, *, kill: bool) -> int | None:
        """End the process: at once, or by closing its socket.

        Returns its exit code (the number of a signal, negated), or None if it had to be killed, now or after a moment.
        """
        self._child.socket.close()
        if not kill:
            try:
                return await self._child.wait(_LAST_SECONDS)
            except TimeoutError:
                pass
        self._child.kill()
        await self._child.wait()
        return None
