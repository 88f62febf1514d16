"""Messages as bytes on the socket between the engine and a worker.

Each is a `HEADER` (bytes of the pickle, bytes of the pixels), a pickle, and the pixels of its image if it has one. The
pixels stand beside the pickle: inside it they would be copied twice more at either end.
"""

import asyncio
import pickle
import socket
import struct
from io import BytesIO
from typing import Any

from app.pixels import Pixels
from app.subprocesses import BUFFER_BYTES

HEADER = struct.Struct(">II")


_MOST_BYTES = 2**26
"""Far more than any message has."""


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Pixels):
            return Pixels, (value.width, value.height, pickle.PickleBuffer(value.data))
        return NotImplemented


def pack(message: object) -> list[bytes | memoryview]:
    """The bytes of one message, which holds at most one image, in one piece or two."""
    images: list[pickle.PickleBuffer] = []
    stream = BytesIO()
    _Pickler(stream, pickle.HIGHEST_PROTOCOL, buffer_callback=images.append).dump(message)
    body = stream.getvalue()
    pixels = [image.raw() for image in images]
    return [HEADER.pack(len(body), sum(map(len, pixels))) + body, *pixels]


def unpack(body: bytes, pixels: bytes) -> Any:
    """The message in a pickle. Both ends of the socket are this program: no client's bytes are ever unpickled."""
    return pickle.loads(body, buffers=(pixels,))  # noqa: S301


class Receiver(asyncio.BufferedProtocol):
    """The engine's end. It copies what it receives once, out of a buffer that it keeps; asyncio's streams copy thrice.

    Args:
        end: the socket that it is on.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._complete: asyncio.Queue[tuple[bytes, bytes] | Exception | None] = asyncio.Queue()
        self._buffer = bytearray(BUFFER_BYTES)
        self._filled = 0

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._buffer)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        start = 0
        while (end := start + self._length(start)) <= self._filled:
            body, _ = HEADER.unpack_from(self._buffer, start)
            message = memoryview(self._buffer)[start + HEADER.size : end]
            self._complete.put_nowait((bytes(message[:body]), bytes(message[body:])))
            start = end
        # The part of the next message that is here moves to the front of a buffer with room for all of it.
        rest = memoryview(self._buffer)[start : self._filled]
        if end - start > len(self._buffer):
            self._buffer = bytearray(end - start)
        if start or rest.obj is not self._buffer:
            self._buffer[: len(rest)] = bytes(rest)
        self._filled = len(rest)

    def _length(self, start: int) -> int:
        """The length of the message that begins there: of its header until that is complete."""
        if self._filled - start < HEADER.size:
            return HEADER.size
        body, pixels = HEADER.unpack_from(self._buffer, start)
        if not body or body + pixels > _MOST_BYTES:
            raise ValueError(f"no message begins with {body} bytes and {pixels} of pixels")
        return int(HEADER.size + body + pixels)

    def connection_lost(self, exc: Exception | None) -> None:
        # Where sending to a worker that had just died is what failed, its last messages are still unread: they say
        # which jobs it had begun.
        try:
            while isinstance(exc, ConnectionError) and (received := self._end.recv_into(self.get_buffer(-1))):
                self.buffer_updated(received)
        except OSError:
            pass
        except ValueError as malformed:
            exc = malformed
        self._complete.put_nowait(exc)

    async def receive(self) -> Any:
        """The next message; None once the other end has closed, in the middle of a message or not.

        Raises:
            Exception: it sent something that is not a message.
        """
        match await self._complete.get():
            case (body, pixels):
                return unpack(body, pixels)
            case None | ConnectionError():
                return None
            case error:
                raise error
