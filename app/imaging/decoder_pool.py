"""Decodes uploads in processes of their own: `app.imaging.decoder_process`, from the service's side."""

import asyncio
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from app.errors import DeadlineExceeded, InvalidImage, Unavailable
from app.imaging.decoder_process import ERRORS, FITS, FOUND, MAX_TEXT, READ, REPLY, REQUEST
from app.imaging.fair_slots import Turns
from app.pixels import IMAGE_SIZE, Fit, Pixels
from app.subprocesses import enlarge_buffers

logger = logging.getLogger(__name__)

DECODE_SECONDS = 30.0
"""Longer than any picture within the limits takes on a slow and busy machine."""

_TRIES = 2
_GRACE_SECONDS = 1.0
"""For a picture that nobody waits for any more: nearly all are read by then, and a decoder costs more to replace."""

_LAST_SECONDS = 1.0
"""For a decoder whose end of the socket is closed to come to its own end, which says why."""

_PIXELS_LENGTH = IMAGE_SIZE * IMAGE_SIZE * 3


class _DecoderDied(Exception):
    """The process ended, or answered nonsense."""


class Sandbox:
    """Decoder processes, and whose turn it is to have one. Lives on one event loop.

    Args:
        max_pixels: limit of an upload's width x height.
        count: pictures of one caller that are decoded at once; another caller finds room for one beside them.
        on_death: called for each decoder that dies.
    """

    def __init__(self, max_pixels: int, count: int, on_death: Callable[[], None]) -> None:
        self._max_pixels = max_pixels
        self._on_death = on_death
        self._turns = Turns(count + 1)
        self._idle = [_Decoder(max_pixels) for _ in range(count)]
        self._closed = False

    async def decode(self, data: bytes, fit: Fit, deadline: float = math.inf, caller: str = "") -> Pixels:
        """As `app.imaging.decode.decode_image`, which says what comes out of it and which errors there are.

        A picture at which a decoder dies is tried once more, since something else may have killed it, and then refused
        as `InvalidImage`. One that takes too long is not tried again. Once nobody waits for it any more, its decoder is
        ended, if it does not come to its own end in a moment; until then its caller's turn lasts.

        Args:
            data: the bytes of the file.
            fit: how it becomes a square.
            deadline: a reading of `time.monotonic()`.
            caller: takes turns with others.

        Raises:
            DeadlineExceeded: it was not decoded before its deadline.
            Unavailable: something that was not the picture killed the decoder, twice.
        """
        return Pixels(IMAGE_SIZE, IMAGE_SIZE, await self._ask(data, FITS.index(fit), deadline, caller))

    async def parameters(self, data: bytes, caller: str = "") -> str:
        """As `app.imaging.decode.read_parameters`, by the same rules."""
        return (await self._ask(data, READ, math.inf, caller)).decode(errors="replace")

    async def _ask(self, data: bytes, what: int, deadline: float, caller: str) -> bytes:
        seconds = None if math.isinf(deadline) else deadline - time.monotonic()
        began = asyncio.Event()
        reading = asyncio.create_task(self._in_turn(data, what, caller, began))
        # Also of what nobody waits for the outcome has to be asked for.
        reading.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(reading)
        except TimeoutError:
            raise DeadlineExceeded(
                "The image was not read in time. Send a smaller one, or try again when less is going on.", retry_after=5
            ) from None
        finally:
            if not reading.done():
                asyncio.get_running_loop().call_later(_GRACE_SECONDS if began.is_set() else 0, reading.cancel)

    async def _in_turn(self, data: bytes, what: int, caller: str, began: asyncio.Event) -> bytes:
        async with self._turns.turn(caller):
            began.set()
            return await self._answered(data, what)

    async def _answered(self, data: bytes, what: int) -> bytes:
        codes = []
        for _ in range(_TRIES):
            decoder = self._take()
            try:
                async with asyncio.timeout(DECODE_SECONDS):
                    kind, body = await decoder.ask(data, what)
            except _DecoderDied as death:
                codes.append(await self._bury(decoder, str(death)))
                if codes[-1] == -signal.SIGXCPU:
                    raise _takes_too_long() from None
                continue
            except TimeoutError:
                await self._bury(decoder, f"it did not answer within {DECODE_SECONDS:g} s", kill=True)
                raise _takes_too_long() from None
            except asyncio.CancelledError:
                # Whoever comes next finds one that has started.
                self._keep(_Decoder(self._max_pixels))
                await decoder.ended(kill=True)
                raise
            self._keep(decoder)
            if kind == FOUND:
                return body
            raise ERRORS[kind - 1](body.decode(errors="replace"), param="image")
        if set(codes) == {-signal.SIGKILL}:
            # A picture cannot cause that: its decoder's limits are told to it, or end it by other signals.
            raise Unavailable("What reads images was ended from outside, twice. Try again in a moment.", retry_after=5)
        raise InvalidImage(
            "The image cannot be read: it makes the decoder fail. Save it anew, and send that.", param="image"
        )

    def _take(self) -> "_Decoder":
        """One that lives. The first to go, where the machine has too little memory, are those that wait here."""
        while self._idle:
            decoder = self._idle.pop()
            if decoder.exit_code is None:
                return decoder
            logger.error("decoder %d died: it was ended from outside", decoder.pid)
            decoder.close()
            self._on_death()
        return _Decoder(self._max_pixels)

    async def _bury(self, decoder: "_Decoder", cause: str, *, kill: bool = False) -> int | None:
        """Returns the exit code: of a signal its number, negated; None if it did not come to an end by itself."""
        code = await decoder.ended(kill=kill)
        logger.error("decoder %d died with exit code %s: %s", decoder.pid, code, cause)
        self._on_death()
        return code

    def close(self) -> None:
        """End all decoders; those that are at work when they have done that."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def _keep(self, decoder: "_Decoder") -> None:
        if self._closed:
            decoder.close()
        else:
            self._idle.append(decoder)


def _takes_too_long() -> InvalidImage:
    return InvalidImage("The image takes too long to read. Save it anew, and send that.", param="image")


class _Decoder:
    """One process, and the socket to it."""

    def __init__(self, max_pixels: int) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        with theirs:
            enlarge_buffers(theirs)
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-m", "app.imaging.decoder_process", str(theirs.fileno()), str(max_pixels)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                # Neither keys nor tokens of this process, and not its signals: Ctrl-C goes to the foreground group.
                env={"PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)},
                process_group=0,
            )
        self.pid = self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it lives."""
        return self._process.poll()

    async def ask(self, data: bytes, what: int) -> tuple[int, bytes]:
        """The kind of the answer, and its body. Raises `_DecoderDied`."""
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(self._socket, REQUEST.pack(len(data), what))
            await loop.sock_sendall(self._socket, data)
            kind, length = REPLY.unpack(await self._receive(REPLY.size))
            most, pixels = (MAX_TEXT, False) if kind or what == READ else (_PIXELS_LENGTH, True)
            if kind > len(ERRORS) or length > most or (pixels and length != most):
                raise _DecoderDied("its answer makes no sense")
            return kind, await self._receive(length)
        except OSError as error:
            raise _DecoderDied(str(error)) from error

    async def _receive(self, length: int) -> bytes:
        loop, body, filled = asyncio.get_running_loop(), bytearray(length), 0
        while filled < length:
            received = await loop.sock_recv_into(self._socket, memoryview(body)[filled:])
            if not received:
                raise _DecoderDied("its answer ended too soon")
            filled += received
        return bytes(body)

    async def ended(self, *, kill: bool) -> int | None:
        """Its exit code, once it has come to its end by itself; None if it had to be killed, now or after a moment."""
        self._socket.close()
        if not kill:
            try:
                return await asyncio.to_thread(self._process.wait, _LAST_SECONDS)
            except subprocess.TimeoutExpired:
                pass
        self._process.kill()
        await asyncio.to_thread(self._process.wait)
        return None

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._socket.close()
        self._process.kill()
        self._process.wait()
