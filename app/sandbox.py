"""Decodes uploads in processes of their own: `app.decoder`, from the service's side."""

import logging
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from app.decoder import ERRORS, FITS, PIXELS, REPLY, REQUEST
from app.engine.jobs import Pixels
from app.errors import DeadlineExceeded, InvalidImage
from app.request import IMAGE_SIZE, Fit

logger = logging.getLogger(__name__)

DECODE_SECONDS = 30.0
"""Longer than any picture within the limits takes on a slow and busy machine."""

_TRIES = 2
_PIXELS_LENGTH = IMAGE_SIZE * IMAGE_SIZE * 3


class _DecoderDied(Exception):
    """The process ended, or answered nonsense."""


class _DecoderHangs(_DecoderDied):
    """It did not answer in time."""


class Sandbox:
    """Decoder processes, as many as there are threads that use it at once. Every method may be called on any thread.

    Args:
        max_pixels: limit of an upload's width x height.
        on_death: called for each decoder that dies.
    """

    def __init__(self, max_pixels: int, on_death: Callable[[], None]) -> None:
        self._max_pixels = max_pixels
        self._on_death = on_death
        self._idle: list[_Decoder] = []
        self._closed = False

    def warm(self, count: int) -> None:
        """Start so many decoders ahead of the first picture."""
        for decoder in [_Decoder(self._max_pixels) for _ in range(count)]:
            self._keep(decoder)

    def decode(self, data: bytes, fit: Fit, deadline: float = math.inf) -> Pixels:
        """As `app.images.decode`, which says what comes out of it and which errors there are.

        A picture at which a decoder dies is tried once more, since something else may have killed it, and then refused
        as `InvalidImage`. One that takes too long is not tried again.

        Raises:
            DeadlineExceeded: it was not decoded before `deadline`, a reading of `time.monotonic()`.
        """
        for _ in range(_TRIES):
            seconds = deadline - time.monotonic()
            if seconds <= 0:
                raise _too_late()
            decoder = self._take()
            try:
                kind, body = decoder.ask(data, fit, min(seconds, DECODE_SECONDS))
            except _DecoderDied as death:
                self._bury(decoder, str(death))
                if isinstance(death, _DecoderHangs) and seconds < DECODE_SECONDS:
                    raise _too_late() from None
                if isinstance(death, _DecoderHangs) or decoder.exit_code == -signal.SIGXCPU:
                    raise InvalidImage(
                        "The image takes too long to read. Save it anew, and send that.", param="image"
                    ) from None
                continue
            self._keep(decoder)
            if kind == PIXELS:
                return Pixels(IMAGE_SIZE, IMAGE_SIZE, body)
            raise ERRORS[kind - 1](body.decode(errors="replace"), param="image")
        raise InvalidImage(
            "The image cannot be read: it makes the decoder fail. Save it anew, and send that.", param="image"
        )

    def _take(self) -> "_Decoder":
        """One that lives. The first to go, where the machine has too little memory, are those that wait here."""
        while True:
            try:
                decoder = self._idle.pop()
            except IndexError:
                return _Decoder(self._max_pixels)
            if decoder.exit_code is None:
                return decoder
            self._bury(decoder, "it was ended from outside")

    def _bury(self, decoder: "_Decoder", cause: str) -> None:
        logger.error("decoder %d died: %s", decoder.pid, cause)
        decoder.close()
        self._on_death()

    def close(self) -> None:
        """End all decoders; one that is at work when it has done that."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def _keep(self, decoder: "_Decoder") -> None:
        if self._closed:
            decoder.close()
        else:
            self._idle.append(decoder)


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded("The image was not read in time. Send a smaller one, or allow more time.", retry_after=5)


class _Decoder:
    """One process, and the socket to it."""

    def __init__(self, max_pixels: int) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-m", "app.decoder", str(theirs.fileno()), str(max_pixels)],
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
        """None while it lives; of a signal its number, negated."""
        return self._process.poll()

    def ask(self, data: bytes, fit: Fit, seconds: float) -> tuple[int, bytes]:
        """The kind of the answer, and its body. Raises `_DecoderDied`."""
        # By the kernel: Python's own limit would take a long answer to pieces. Nought would be no limit.
        limit = struct.pack("ll", *divmod(max(1, int(seconds * 1e6)), 10**6))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, limit)
        try:
            self._socket.sendall(REQUEST.pack(len(data), FITS.index(fit)))
            self._socket.sendall(data)
            kind, length = REPLY.unpack(self._receive(REPLY.size))
            if kind > len(ERRORS) or length > _PIXELS_LENGTH or (kind == PIXELS and length != _PIXELS_LENGTH):
                raise _DecoderDied("its answer makes no sense")
            return kind, self._receive(length)
        except BlockingIOError:
            raise _DecoderHangs(f"it did not answer within {seconds:.3g} s") from None
        except OSError as error:
            raise _DecoderDied(str(error)) from error

    def _receive(self, length: int) -> bytes:
        """So many bytes, in one piece: a picture's are not to be copied once more."""
        body = self._socket.recv(length, socket.MSG_WAITALL) if length else b""
        if len(body) < length:
            raise _DecoderDied("its answer ended too soon")
        return body

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._socket.close()
        self._process.kill()
        self._process.wait()
