"""Messages on the socket between the engine and a worker: however they are cut, they come out as they went in."""

import asyncio
import random
import socket

import pytest

from app.engine.framing import HEADER, Receiver, pack, unpack
from app.engine.messages import Done, Progress, Result, Started
from app.pixels import Pixels
from app.subprocesses import BUFFER_BYTES, enlarge_buffer

SMALL = [Started("a"), Progress("a", 1, 3), Progress("a", 2, 3)]


def done(side: int) -> Done:
    """A message with an image of `side` squared pixels."""
    return Done("a", Result(Pixels(side, side, random.Random(side).randbytes(3 * side * side)), 3, 0.5), 1)


async def received(pieces: list[bytes], count: int) -> list[object]:
    """What comes out at the other end of a real socket into which the pieces are written, one by one."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()
    transport, receiver = await loop.create_unix_connection(lambda: Receiver(ours), sock=ours)

    async def send() -> None:
        for piece in pieces:
            await loop.sock_sendall(theirs, piece)
            await asyncio.sleep(0)

    try:
        sending = asyncio.create_task(send())
        messages = [await receiver.receive() for _ in range(count)]
        await sending
        theirs.shutdown(socket.SHUT_WR)
        assert await receiver.receive() is None
        return messages
    finally:
        transport.close()
        theirs.close()


def cut(data: bytes, sizes: range, seed: int) -> list[bytes]:
    """The data in pieces of random sizes."""
    rng, pieces = random.Random(seed), []
    while data:
        size = rng.choice(sizes)
        pieces.append(data[:size])
        data = data[size:]
    return pieces


@pytest.mark.parametrize("sizes", [range(1, 4), range(1, 40), range(1, 5000), range(2**22, 2**22 + 1)], ids=str)
def test_messages_cut_anywhere_are_received_as_sent(sizes: range) -> None:
    messages = [*SMALL, done(8), done(24), *SMALL, done(16)]
    data = b"".join(part for message in messages for part in pack(message))
    assert asyncio.run(received(cut(data, sizes, seed=sizes.stop), len(messages))) == messages


def test_message_larger_than_the_buffer_is_received() -> None:
    messages = [*SMALL, done(1024), *SMALL, done(512), done(1500)]
    data = b"".join(part for message in messages for part in pack(message))
    assert len(pack(done(1024))[1]) > BUFFER_BYTES
    assert asyncio.run(received(cut(data, range(1, 300_000), seed=1), len(messages))) == messages


@pytest.mark.parametrize("header", [HEADER.pack(2**31, 0), HEADER.pack(10, 2**32 - 1), HEADER.pack(0, 5)])
def test_malformed_message_ends_the_connection_and_takes_no_memory(header: bytes) -> None:
    with pytest.raises(ValueError, match="no message"):
        asyncio.run(received([header, b"x" * 1000], 1))


def test_connection_that_ends_within_a_message_gives_none() -> None:
    data = b"".join(pack(done(8)))
    assert asyncio.run(received([data, data[:-1]], 1)) == [done(8)]


@pytest.mark.parametrize(
    ("left", "last"),
    [
        (b"".join(part for message in (*SMALL, done(512)) for part in pack(message)), None),
        (HEADER.pack(0, 5), ValueError),
    ],
    ids=["words", "nonsense"],
)
def test_last_messages_are_received_after_a_send_failed(left: bytes, last: type[Exception] | None) -> None:
    async def go() -> list[object]:
        ours, theirs = socket.socketpair()
        enlarge_buffer(theirs)
        transport, receiver = await asyncio.get_running_loop().create_unix_connection(lambda: Receiver(ours), sock=ours)
        theirs.sendall(left)
        theirs.close()
        # Before the loop has looked at what has come.
        transport.write(b"too late")
        received: list[object] = []
        while (message := await receiver.receive()) is not None:
            received.append(message)
        return received

    if last:
        with pytest.raises(last):
            asyncio.run(go())
    else:
        assert asyncio.run(go()) == [*SMALL, done(512)]


def test_connection_that_ends_without_a_message_gives_none() -> None:
    async def go() -> object:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            receiver = Receiver(ours)
            receiver.connection_lost(BrokenPipeError())
            return await receiver.receive()

    assert asyncio.run(go()) is None


def test_pixels_are_sent_beside_the_pickle_and_arrive_as_bytes() -> None:
    message = done(8)
    body, pixels = pack(message)
    assert pixels == message.result.pixels.data
    again = unpack(bytes(body[HEADER.size :]), bytes(pixels))
    assert again == message
    assert type(again.result.pixels.data) is bytes
