"""Messages as bytes on the socket between the engine and a worker.

Each is a `HEADER` (bytes of the pickle, bytes of the picture), a pickle, and the pixels of its picture if it has one:
those stand beside the pickle, since inside it they would be copied twice more at either end.
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
"""What no part of a message comes near."""


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Pixels):
            return Pixels, (value.width, value.height, pickle.PickleBuffer(value.data))
        return NotImplemented


def pack(message: object) -> list[bytes | memoryview]:
    """One message, which holds at most one picture: what is to be sent, in one piece or two."""
    pictures: list[pickle.PickleBuffer] = []
    stream = BytesIO()
    _Pickler(stream, pickle.HIGHEST_PROTOCOL, buffer_callback=pictures.append).dump(message)
    body = stream.getvalue()
    pixels = [picture.raw() for picture in pictures]
    return [HEADER.pack(len(body), sum(map(len, pixels))) + body, *pixels]


def unpack(body: bytes, picture: bytes) -> Any:
    """The message in a pickle. Both ends of the socket are this program: nothing of a caller's is ever unpickled."""
    return pickle.loads(body, buffers=(picture,))  # noqa: S301


class Receiver(asyncio.BufferedProtocol):
    """The engine's end. What is received is copied once, out of a buffer that stays; asyncio's streams do so thrice.

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
        # What there is of the next one moves to the front, and finds room for all of it.
        rest = memoryview(self._buffer)[start : self._filled]
        if end - start > len(self._buffer):
            self._buffer = bytearray(end - start)
        if start or rest.obj is not self._buffer:
            self._buffer[: len(rest)] = bytes(rest)
        self._filled = len(rest)

    def _length(self, start: int) -> int:
        """The bytes of the message that begins there, as far as they are known."""
        if self._filled - start < HEADER.size:
            return HEADER.size
        body, picture = HEADER.unpack_from(self._buffer, start)
        if not body or body + picture > _MOST_BYTES:
            raise ValueError(f"no message begins with {body} bytes and a picture of {picture}")
        return int(HEADER.size + body + picture)

    def connection_lost(self, exc: Exception | None) -> None:
        # Where a word to a worker that had just died is what failed, its own last words are still to be read: they say
        # which jobs it had on board.
        try:
            while isinstance(exc, ConnectionError) and (received := self._end.recv_into(self.get_buffer(-1))):
                self.buffer_updated(received)
        except OSError:
            pass
        except ValueError as nonsense:
            exc = nonsense
        self._complete.put_nowait(exc)

    async def receive(self) -> Any:
        """The next message; None once the other end has closed, in the middle of a message or not.

        Raises:
            Exception: it sent something that is no message.
        """
        match await self._complete.get():
            case (body, picture):
                return unpack(body, picture)
            case None | ConnectionError():
                return None
            case error:
                raise error
