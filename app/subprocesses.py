"""What the child processes have in common: the sockets between them and this one."""

import socket

BUFFER_BYTES = 2**20
"""More than a picture of 512x512: one that does not fit goes over in pieces, and wakes both processes for each."""


def enlarge_buffers(end: socket.socket) -> None:
    """Have the kernel hold a whole picture for one end of a socket pair, as far as it allows."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
