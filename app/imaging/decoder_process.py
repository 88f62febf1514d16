"""A process that decodes images and does nothing else, so that a crash in a decoder costs one request.

    python -m app.imaging.decoder_process FD MAX_PIXELS

FD is one end of a socket pair. A request is a `REQUEST` header (bytes that follow; the index of the `Fit`, or `READ`
for the generation parameters) and the file. The answer is a `REPLY` header (kind, bytes that follow) and, for the kind
`FOUND`, `uint8[512, 512, 3]` or a text in UTF-8; for any other kind, the message of the error. There is no pickle: the
other end does not trust this process. It ends when the other end closes.
"""

import importlib
import os
import resource
import socket
import struct
import sys
import time
import warnings
from contextlib import suppress

from app.errors import ImageTooLarge, InvalidImage, UnsupportedImageFormat
from app.imaging.decode import decode_image, read_parameters
from app.pixels import Fit

REQUEST = struct.Struct(">IB")
REPLY = struct.Struct(">BI")
FOUND = 0
ERRORS = (InvalidImage, ImageTooLarge, UnsupportedImageFormat)
"""The errors that an image can cause; the kind is the index plus one."""

FITS = tuple(Fit)
READ = len(FITS)
MAX_TEXT = 2**18
"""Bytes of the generation parameters that are sent at most: more than any prompt has."""

CPU_SECONDS = 15
"""For one image: longer than any within the limits takes. It ends even if the service no longer runs."""

_BASE_BYTES = 512 * 1024**2
_BYTES_A_PIXEL = 16
"""An image with transparency is held as RGBA, turned as another, and laid onto a third."""


def main(fd: int, max_pixels: int) -> None:
    """Serve until the other end closes."""
    # Everything that a format needs is imported now, and not while a hostile file is read.
    for name in ("Png", "Jpeg", "Mpo", "Tiff", "WebP"):
        importlib.import_module(f"PIL.{name}ImagePlugin")
    # A hostile image could fill the log: Pillow and its libraries warn of each bad tag.
    warnings.simplefilter("ignore")
    _confine(_BASE_BYTES + _BYTES_A_PIXEL * max_pixels)
    with socket.socket(fileno=fd) as connection:
        while header := _receive(connection, REQUEST.size):
            length, fit = REQUEST.unpack(header)
            _limit_time()
            kind, body = _answer(_receive(connection, length), fit, max_pixels)
            connection.sendall(REPLY.pack(kind, len(body)))
            connection.sendall(body)


def _answer(data: bytes, fit: int, max_pixels: int) -> tuple[int, bytes]:
    try:
        if fit == READ:
            return FOUND, read_parameters(data, max_pixels).encode(errors="replace")[:MAX_TEXT]
        return FOUND, decode_image(data, FITS[fit], max_pixels).data
    except ERRORS as error:
        return 1 + ERRORS.index(type(error)), error.message.encode()
    except MemoryError:
        return 1 + ERRORS.index(ImageTooLarge), b"The image takes too much memory to read. Send a smaller image."


def _confine(memory: int) -> None:  # pragma: no cover  a process so confined can write no report of it
    """Limit memory; forbid files, core dumps and messages; be the first that the kernel kills when memory is short."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    for what, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(what, (most, most))
    # `pathlib` would be five modules more in each decoder.
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:  # noqa: PTH123
        score.write("900")


def _limit_time() -> None:  # pragma: no cover  a confined process writes no report
    """Allow `CPU_SECONDS` more of processor time, after which the kernel ends the process."""
    used = time.process_time()
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + 1 + CPU_SECONDS, resource.RLIM_INFINITY))


def _receive(connection: socket.socket, length: int) -> bytes:
    """Receive so many bytes; fewer, or none, if the other end has closed."""
    return connection.recv(length, socket.MSG_WAITALL) if length else b""


if __name__ == "__main__":  # pragma: no cover  a confined process writes no report
    main(int(sys.argv[1]), int(sys.argv[2]))
