"""`serve` in a process of its own, as Docker runs it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import httpx2
import pytest

from app.cli.serve import check_address
from app.errors import EngineStopped
from app.main import end_process
from tests.support.http import connect, eventually, free_port, post, problem, sample
from tests.support.servers import is_ready

CODE = """
import sys
from app.cli.serve import serve
from app.settings import Settings
settings = Settings(devices="cpu", port=int(sys.argv[1]), model=sys.argv[2], max_worker_deaths=1)
sys.exit(serve(settings, "tests.support.fakes:load"))
"""


@contextmanager
def serving(model: str = "fake", **knobs: float) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(port), model],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **{f"IMG2IMG_{name.upper()}": str(value) for name, value in knobs.items()}},
    )
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_lets_a_running_request_finish_and_exits_0(png: bytes, number: signal.Signals) -> None:
    with serving() as (url, process):
        eventually(lambda: is_ready(url))
        answers: list[httpx2.Response] = []
        request = threading.Thread(target=lambda: answers.append(post(url, png, prompt="tick=0.3", seed="1")))
        request.start()
        eventually(lambda: sample(url, "img2img_jobs_on_board") == 1)
        process.send_signal(number)
        assert process.wait(20) == 0
        request.join()
        assert answers[0].status_code == 200


class TestDrain:
    """What a signal does while a request runs."""

    @staticmethod
    def _ask(url: str, png: bytes, answers: list[httpx2.Response], prompt: str) -> threading.Thread:
        thread = threading.Thread(target=lambda: answers.append(post(url, png, prompt=prompt, seed="1")))
        thread.start()
        eventually(lambda: sample(url, "img2img_jobs_on_board") == 1)
        return thread

    def test_drain_finishes_running_and_refuses_new_requests(self, png: bytes) -> None:
        answers: list[httpx2.Response] = []
        with serving() as (url, process):
            eventually(lambda: is_ready(url))
            request = self._ask(url, png, answers, "tick=0.7")
            process.send_signal(signal.SIGTERM)
            eventually(lambda: not is_ready(url))
            state = httpx2.get(f"{url}/health/ready")
            assert (state.status_code, state.json()) == (503, {"status": "draining"})
            assert httpx2.get(f"{url}/health/live").status_code == 200
            refused = post(url, png)
            problem(refused, 503, "shutting_down")
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.headers["connection"] == "close"
            # A supervisor that is impatient changes nothing.
            process.send_signal(signal.SIGTERM)
            assert process.poll() is None
            assert process.wait(20) == 0
            request.join()
        assert answers[0].status_code == 200

    def test_drain_refuses_requests_that_take_too_long(self, png: bytes) -> None:
        answers: list[httpx2.Response] = []
        with serving(drain_seconds=0.5) as (url, process):
            eventually(lambda: is_ready(url))
            request = self._ask(url, png, answers, "tick=3")
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
            request.join()
        # The answer would be the image, had the process waited for it.
        problem(answers[0], 503, "shutting_down")

    def test_drain_delay_refuses_requests_before_the_port_closes(self, png: bytes) -> None:
        with serving(drain_delay_seconds=3) as (url, process):
            eventually(lambda: is_ready(url))
            process.send_signal(signal.SIGTERM)
            eventually(lambda: not is_ready(url))
            # Without the delay an idle service closes its listener before the second of these.
            refused = 0
            with suppress(httpx2.TransportError):
                while refused < 1_000:
                    problem(post(url, png), 503, "shutting_down")
                    refused += 1
                    time.sleep(0.2)
            assert 4 <= refused < 1_000
            assert process.wait(20) == 0

    def test_second_ctrl_c_ends_at_once_and_answers_requests(self, png: bytes) -> None:
        answers: list[httpx2.Response] = []
        with serving(drain_seconds=60) as (url, process):
            eventually(lambda: is_ready(url))
            request = self._ask(url, png, answers, "tick=3")
            process.send_signal(signal.SIGINT)
            eventually(lambda: not is_ready(url))
            process.send_signal(signal.SIGINT)
            assert process.wait(15) == 0
            request.join()
        # The answer would be the image, had the process waited for it.
        problem(answers[0], 503, "shutting_down")

    def test_request_still_arriving_at_the_end_gets_an_answer(self) -> None:
        with serving() as (url, process):
            eventually(lambda: is_ready(url))
            with connect(url) as connection:
                head = b"POST /img2img HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\n"
                connection.sendall(head + bytes(990))
                time.sleep(0.3)
                process.send_signal(signal.SIGTERM)
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
            assert process.wait(20) == 0
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"content-type: application/problem+json\r\n" in answer
            assert b"retry-after: 1\r\n" in answer
            assert process.stderr
            log = process.stderr.read()
            assert "timeout graceful shutdown exceeded" in log
            assert "Traceback" not in log

    def test_second_ctrl_c_does_not_wait_for_slow_uploads(self) -> None:
        with serving() as (url, process):
            eventually(lambda: is_ready(url))
            with connect(url) as connection:
                head = b"POST /img2img HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\n"
                connection.sendall(head)
                time.sleep(0.3)
                process.send_signal(signal.SIGINT)
                # Nothing runs that could be waited for, so that the listener closes at once.
                eventually(lambda: not is_ready(url))
                time.sleep(0.5)
                process.send_signal(signal.SIGINT)
                assert process.wait(15) == 0
                assert process.stderr
                # The process does not use up the time that it gives slow clients, as it does after one signal.
                assert "timeout graceful shutdown exceeded" not in process.stderr.read()


@pytest.mark.parametrize(("model", "reason"), [("broken", "there is no such checkpoint"), ("dies", "died on cpu")])
def test_stopped_engine_ends_the_process_with_1_and_its_reason(model: str, reason: str) -> None:
    with serving(model) as (_, process):
        _, log = process.communicate(timeout=30)
        assert process.returncode == 1
        assert reason in log.strip().splitlines()[-1]


def test_end_process_sends_sigterm_to_itself() -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        end_process(EngineStopped("it is a test"))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]


def test_stopped_engine_ends_the_process_of_another_server() -> None:
    code = """
import uvicorn
from app.main import create_app
from app.settings import Settings
uvicorn.run(create_app(Settings(devices="cpu", model="broken"), "tests.support.fakes:load"), port=0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == -signal.SIGTERM
    assert "there is no such checkpoint" in done.stderr


def test_unusable_address_is_refused_before_anything_starts() -> None:
    with serving() as (url, first):
        eventually(lambda: is_ready(url))
        port = url.rpartition(":")[2]
        for variables, said in (
            ({"IMG2IMG_PORT": port}, f"Nothing can listen on 127.0.0.1, port {port}: Address already in use. Choose"),
            ({"IMG2IMG_HOST": "no.such.host.invalid"}, "Nothing can listen on no.such.host.invalid, port 8000: "),
            ({"IMG2IMG_HOST": "192.0.2.1"}, "Nothing can listen on 192.0.2.1, port 8000: Cannot assign"),
        ):
            second = subprocess.run(
                [sys.executable, "-m", "app", "serve"],
                env={**os.environ, **variables},
                capture_output=True,
                text=True,
                timeout=30,
            )
            assert (second.returncode, len(second.stderr.splitlines())) == (2, 1)
            assert second.stderr.startswith(f"img2img: {said}")
        assert first.poll() is None


@pytest.mark.parametrize("host", ["", "::", "::1", "localhost", "0.0.0.0"])
def test_each_form_of_an_address_is_accepted(host: str) -> None:
    check_address(host, 0)


@pytest.mark.parametrize(("trusted", "served"), [("", 2), ("127.0.0.1", 4)])
def test_forwarded_address_counts_from_named_proxies_only(
    png: bytes, monkeypatch: pytest.MonkeyPatch, trusted: str, served: int
) -> None:
    """Of six requests, one caller gets the two places of the queue, and a crowd twice as many."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", trusted)
    with serving(queue_size=2) as (url, _):
        eventually(lambda: is_ready(url))

        def ask(number: int) -> int:
            headers = {"X-Forwarded-For": f"192.0.2.{number}"}
            form = {"prompt": "tick=0.3"}
            return httpx2.post(f"{url}/img2img", files={"image": png}, data=form, headers=headers).status_code

        with ThreadPoolExecutor(6) as pool:
            statuses = list(pool.map(ask, range(6)))
    assert statuses.count(200) == served


def test_log_has_no_prompts(png: bytes) -> None:
    with serving() as (url, process):
        eventually(lambda: is_ready(url))
        secret = "unmistakable-secret"
        httpx2.post(f"{url}/img2img", params={"prompt": secret}, content=png, headers={"Content-Type": "image/png"})
        post(url, png, prompt=f"{secret} fail_at=0")
        post(url, png, prompt=f"{secret} finish=nan")
        httpx2.get(f"{url}/{secret}")
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
        assert "POST /img2img 200" in log
        assert "as requested" in log
        assert secret not in log
