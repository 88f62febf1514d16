"""Decoding in a process of its own: the same pixels, and a crash that costs one request."""

import asyncio
import math
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from app.errors import DeadlineExceeded, ImageTooLarge, InvalidImage, ServiceError, Unavailable, UnsupportedImageFormat
from app.imaging import decoder_pool, decoder_process
from app.imaging.decode import decode_image
from app.imaging.decoder_pool import DecoderPool
from app.pixels import Fit, Pixels
from tests.support.http import eventually, post, problem, sample
from tests.support.images import LIMIT, chunk, every_format, noise, png, saved, webp_bomb
from tests.support.servers import StartServer


@pytest.fixture
def deaths() -> list[int]:
    return []


@pytest.fixture
def others() -> set[int]:
    """Decoders of servers that other tests have started in this process."""
    return set(decoders())


@pytest.fixture
def box(deaths: list[int], others: set[int]) -> Iterator[DecoderPool]:
    box = DecoderPool(LIMIT, 1, lambda: deaths.append(1))
    asyncio.run(box.start())
    yield box
    box.close()


def decode(box: DecoderPool, data: bytes, fit: Fit = Fit.STRETCH, deadline: float = math.inf) -> Pixels:
    return asyncio.run(box.decode(data, fit, deadline))


def decoders() -> list[int]:
    """Process ids of the decoders that this process has started."""
    found, parent = [], os.getpid()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
                of_parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent
            except (OSError, IndexError):
                continue
            if of_parent and b"app.imaging.decoder_process" in command:
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize("fit", list(Fit))
@every_format
def test_pool_gives_the_pixels_of_decode_image(
    make: Callable[[Image.Image], bytes], fit: Fit, box: DecoderPool
) -> None:
    data = make(noise((700, 300)))
    assert decode(box, data, fit) == decode_image(data, fit, LIMIT)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", InvalidImage),
        (b"GIF89a", UnsupportedImageFormat),
        (b"\x89PNG\r\n\x1a\n", InvalidImage),
        (webp_bomb(b"VP8X", (16_000, 16_000)), ImageTooLarge),
    ],
)
def test_pool_refuses_with_the_errors_of_decode_image(
    data: bytes, error: type[ServiceError], box: DecoderPool, deaths: list[int]
) -> None:
    with pytest.raises(error) as here:
        decode_image(data, Fit.STRETCH, LIMIT)
    with pytest.raises(error) as there:
        decode(box, data)
    assert (there.value.message, there.value.param) == (here.value.message, here.value.param)
    assert deaths == []


@cache
def slow_picture() -> bytes:
    """So large that decoding it takes long enough to be interrupted."""
    side = 7000
    return png((side, side), 8, 2, bytes((1 + 3 * side) * side))


def reading(box: DecoderPool, data: bytes | None = None) -> tuple[threading.Thread, list[object]]:
    """A thread that has a slow picture decoded, or something else, and where it puts what comes of that."""
    outcome: list[object] = []

    def read() -> None:
        try:
            outcome.append(decode(box, data or slow_picture()))
        except ServiceError as error:
            outcome.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    return thread, outcome


def killed(box: DecoderPool, others: set[int], times: int, number: signal.Signals = signal.SIGKILL) -> list[object]:
    """What becomes of a slow picture if so many decoders are killed while they have it."""
    thread, outcome = reading(box)
    seen = set(others)
    for _ in range(times):
        eventually(lambda: bool(set(decoders()) - seen))
        (victim,) = set(decoders()) - seen
        eventually(lambda: at_work(victim))  # noqa: B023
        seen.add(victim)
        os.kill(victim, number)
    thread.join()
    return outcome


def at_work(pid: int) -> bool:
    """Whether a decoder has been given a picture."""
    return "Max cpu time              1" in Path(f"/proc/{pid}/limits").read_text()


def test_decoder_killed_from_outside_is_replaced(box: DecoderPool, others: set[int], deaths: list[int]) -> None:
    assert killed(box, others, 1) == [decode_image(slow_picture(), Fit.STRETCH, LIMIT)]
    assert deaths == [1]


def test_image_that_crashes_two_decoders_is_refused(box: DecoderPool, others: set[int], deaths: list[int]) -> None:
    (refused,) = killed(box, others, 2, signal.SIGSEGV)
    assert isinstance(refused, InvalidImage)
    assert "makes the decoder fail" in str(refused)
    assert deaths == [1, 1]
    assert decode(box, saved(noise((8, 8)), "PNG"))


def test_image_whose_decoders_were_killed_twice_is_retryable(
    box: DecoderPool, others: set[int], deaths: list[int]
) -> None:
    (refused,) = killed(box, others, 2)
    assert isinstance(refused, Unavailable)
    assert refused.retryable
    assert deaths == [1, 1]


def test_hanging_decoder_is_killed_and_its_image_not_retried(
    box: DecoderPool, others: set[int], deaths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.imaging.decoder_pool.DECODE_SECONDS", 3.0)
    (refused,) = killed(box, others, 1, signal.SIGSTOP)
    assert isinstance(refused, InvalidImage)
    assert "takes too long" in str(refused)
    assert deaths == [1]


def test_decoder_killed_while_idle_costs_no_request(box: DecoderPool, others: set[int], deaths: list[int]) -> None:
    (pid,) = set(decoders()) - others
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)
    assert decode(box, saved(noise((8, 8)), "PNG"))
    assert deaths == [1]


def test_decoding_ends_at_the_deadline(box: DecoderPool, others: set[int], deaths: list[int]) -> None:
    before = set(decoders()) - others
    with pytest.raises(DeadlineExceeded):
        decode(box, slow_picture(), deadline=time.monotonic() + 0.1)
    assert not before & set(decoders()), "the decoder has ended"
    with pytest.raises(DeadlineExceeded):
        decode(box, slow_picture(), deadline=time.monotonic() - 1)
    assert deaths == [], "that is no fault of theirs"


def test_decoding_ends_when_the_request_is_cancelled(box: DecoderPool, others: set[int], deaths: list[int]) -> None:
    (pid,) = set(decoders()) - others

    async def go() -> None:
        task = asyncio.create_task(box.decode(slow_picture(), Fit.STRETCH))
        while not at_work(pid):  # noqa: ASYNC110  it is another process
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(go())
    assert pid not in decoders()
    assert decode(box, saved(noise((8, 8)), "PNG"))
    assert deaths == []


def test_caller_with_many_slow_images_does_not_block_another(box: DecoderPool) -> None:
    async def go() -> int:
        slow = slow_picture()
        greedy = [asyncio.create_task(box.decode(slow, Fit.STRETCH, caller="greedy")) for _ in range(4)]
        await asyncio.sleep(0.05)
        await box.decode(saved(noise((8, 8)), "PNG"), Fit.STRETCH, caller="other")
        done = sum(task.done() for task in greedy)
        await asyncio.gather(*greedy)
        return done

    assert asyncio.run(go()) <= 2, "not behind all of them"


def test_image_over_the_cpu_limit_is_refused_and_not_retried(
    box: DecoderPool, others: set[int], deaths: list[int]
) -> None:
    (refusal,) = killed(box, others, 1, signal.SIGXCPU)
    assert isinstance(refusal, InvalidImage)
    assert "takes too long" in str(refusal)
    assert deaths == [1]


def test_decoder_that_dies_while_receiving_is_replaced(box: DecoderPool, others: set[int], deaths: list[int]) -> None:
    (pid,) = set(decoders()) - others
    os.kill(pid, signal.SIGSTOP)
    thread, outcome = reading(box, b"no picture" * 1_000_000)
    time.sleep(0.5)
    os.kill(pid, signal.SIGKILL)
    thread.join()
    assert [type(one) for one in outcome] == [UnsupportedImageFormat]
    assert deaths == [1]


@pytest.mark.parametrize("patience", [0.0, 5.0])
def test_malformed_answer_of_a_decoder_is_rejected(
    box: DecoderPool, deaths: list[int], monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    monkeypatch.setattr(decoder_pool, "_PIXELS_LENGTH", 3)
    monkeypatch.setattr(decoder_pool, "_LAST_SECONDS", patience)
    with pytest.raises(InvalidImage):
        decode(box, saved(noise((8, 8)), "PNG"))
    assert deaths == [1, 1]


def test_decoders_are_confined_and_end_with_the_pool(box: DecoderPool, others: set[int]) -> None:
    decode(box, saved(noise((8, 8)), "PNG"))
    pids = set(decoders()) - others
    assert len(pids) == 1
    used = [pid for pid in pids if "Max file size             0 " in Path(f"/proc/{pid}/limits").read_text()]
    assert used, "the one that has decoded has confined itself"
    limits = Path(f"/proc/{used[0]}/limits").read_text()
    address_space = next(line for line in limits.splitlines() if line.startswith("Max address space"))
    assert int(address_space.split()[3]) < 1.5e9
    assert Path(f"/proc/{used[0]}/oom_score_adj").read_text() == "900\n"
    environment = Path(f"/proc/{used[0]}/environ").read_bytes()
    assert [part.partition(b"=")[0] for part in environment.split(b"\0") if part] == [b"PYTHONPATH"]
    box.close()
    assert set(decoders()) <= others
    decode(box, saved(noise((8, 8)), "PNG"))
    assert set(decoders()) <= others, "one that was at work then ends when it has done that"


def test_image_with_bad_tags_writes_nothing_to_the_log() -> None:
    """Each tag of this one is worth a warning. The log is a pipe: to a file a confined decoder can write nothing."""
    count = 5_000
    tags = b"".join(struct.pack(">HHII", 1 + number, 2, 60_000, 8) for number in range(count))
    exif = b"MM\0\x2a\0\0\0\x08" + struct.pack(">H", count) + tags + bytes(4)
    read, write = os.pipe()
    before = os.dup(2)
    try:
        os.dup2(write, 2)
        box = DecoderPool(LIMIT, 1, lambda: None)
        asyncio.run(box.start())
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(write)
    with os.fdopen(read, "rb") as log:
        assert decode(box, png((4, 4), 8, 2, bytes(52), chunk(b"eXIf", exif)))
        box.close()
        assert log.read() == b""


def test_decoder_process_answers_until_the_socket_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, without its confines."""
    monkeypatch.setattr(decoder_process, "_confine", lambda memory: None)
    monkeypatch.setattr(decoder_process, "_limit_time", lambda: None)
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=decoder_process.main, args=(theirs.detach(), LIMIT))
    thread.start()
    with ours:
        for data in (saved(noise((8, 8)), "PNG"), b""):
            ours.sendall(decoder_process.REQUEST.pack(len(data), 0) + data)
            kind, length = decoder_process.REPLY.unpack(ours.recv(decoder_process.REPLY.size, socket.MSG_WAITALL))
            body = ours.recv(length, socket.MSG_WAITALL)
            assert (kind, len(body)) == (0, 512 * 512 * 3) if data else (1, len(body))
    thread.join()

    def too_much(data: bytes, fit: Fit, max_pixels: int) -> Pixels:
        raise MemoryError

    monkeypatch.setattr(decoder_process, "decode_image", too_much)
    kind, body = decoder_process._answer(b"", 0, LIMIT)
    assert decoder_process.ERRORS[kind - 1] is ImageTooLarge
    assert b"too much memory" in body


def test_decoder_crash_costs_one_request_and_is_counted(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = saved(noise((64, 64)), "PNG")
    with start_server() as url:
        with monkeypatch.context() as patch:
            # As an answer from a decoder whose memory is spoilt.
            patch.setattr(decoder_pool, "_PIXELS_LENGTH", 3)
            problem(post(url, picture), 422, "invalid_image", "image")
        assert sample(url, "img2img_decoder_deaths_total") == 2
        assert post(url, picture).status_code == 200
        assert httpx2.get(f"{url}/health/ready").status_code == 200
