"""A demo of the service: starts it, sends an image, saves the answer, reports each stage's time, stops it."""

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import httpx2
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.client import Edited, Img2Img, Img2ImgError, NoService

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "dog wizard, gandalf, lord of the rings, detailed, fantasy, cute, adorable, Pixar, Disney, 8k"
STOP_SECONDS = 60.0
SMALL = (
    "The embedded model is small: it draws icons of some common things only. For SDXL-Turbo: "
    "scripts/demo --model stabilityai/sdxl-turbo (downloads 7 GB, needs a CUDA GPU)."
)


class DemoFailed(Exception):
    """The demo failed; the message says why."""


class Service:
    """A running `img2img serve`, its log in a file."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: IO[bytes], url: str) -> None:
        self.process = process
        self.url = url
        self._log = log

    def lines(self) -> list[str]:
        """The last lines of the log; each state of a progress bar is one line."""
        # `pread`, since the service writes at the position of the same open file.
        log = os.pread(self._log.fileno(), 2**20, max(0, os.fstat(self._log.fileno()).st_size - 2**20))
        return [line for line in log.decode(errors="replace").replace("\r", "\n").split("\n") if line.strip()]

    def tail(self) -> str:
        """The end of the log as text."""
        return "\n".join(self.lines()[-20:])

    def wait_until_ready(self, client: Img2Img, console: Console) -> dict[str, str]:
        """Wait until the model is loaded and return its description; shows the progress of a download."""
        with console.status("Loading the model …") as status:
            while self.process.poll() is None:
                if client.ready():
                    return dict(client.health()["model"])
                last = "".join(self.lines()[-1:])
                status.update(f"Loading the model … [dim]{escape(last[-90:])}[/dim]")
                time.sleep(0.1)
        raise DemoFailed(f"The service ended with exit code {self.process.returncode}:\n{self.tail()}")

    def stop(self) -> int:
        """Ask the service to end, wait for it, and return its exit code."""
        self.process.terminate()
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@contextmanager
def running_service(model: str | None) -> Iterator[Service]:
    """`img2img serve` on a free loopback port, in its own session: Ctrl-C reaches the demo, which stops it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "app", "serve", "--host", "127.0.0.1", "--port", port]
    command += ["--model", model] if model else []
    # The current folder may hold another package named app.
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        service = Service(process, log, f"http://127.0.0.1:{port}")
        try:
            yield service
        except BaseException:
            service.stop()
            raise
        if code := service.stop():
            raise DemoFailed(f"The service stopped with exit code {code}:\n{service.tail()}")


def parse_arguments() -> argparse.Namespace:
    """The options. The service sets the defaults, except for the seed: each run gives the same image."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--prompt", default=PROMPT, help=f'by default "{PROMPT}"')
    parser.add_argument("--image", type=Path, default=ROOT / "scripts/demo.png", help="PNG, JPEG or WebP")
    parser.add_argument("--strength", type=float, help="how much is redrawn, up to 1; by default 0.9")
    parser.add_argument("--steps", type=int, help="steps of the complete schedule; by default 4")
    parser.add_argument("--guidance-scale", type=float, help="by default 0, which SDXL-Turbo wants")
    parser.add_argument("--seed", type=int, default=42, help="by default 42")
    parser.add_argument("--model", help="embedded, a folder or a hub id; by default IMG2IMG_MODEL, else auto")
    parser.add_argument("--output", type=Path, default=ROOT / "out/demo.png", help="by default out/demo.png here")
    return parser.parse_args()


def run(options: argparse.Namespace, console: Console) -> None:
    """Run the demo.

    Raises:
        DemoFailed: the service did not start or did not stop as it should.
        Img2ImgError: the service refused the image or a parameter.
        OSError: the image cannot be read or the answer cannot be saved.
    """
    image = options.image.read_bytes()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with running_service(options.model) as service, Img2Img(service.url) as client:
        console.print(f"Starting the service at {service.url} and loading its model.", markup=False)
        model = service.wait_until_ready(client, console)
        ready = time.perf_counter()
        edited = client.edit(
            image,
            options.prompt,
            num_inference_steps=options.steps,
            strength=options.strength,
            guidance_scale=options.guidance_scale,
            seed=options.seed,
            output_format="png",
        )
        answered = time.perf_counter()
        memory = peak_memory(httpx2.get(f"{service.url}/metrics", trust_env=False).text)
    path = edited.save(options.output)
    report(console, edited, path, model)
    console.print(times(edited, ready - start, answered - ready))
    console.print(f"Peak memory of the worker: {memory / 1e6:,.0f} MB")


def peak_memory(metrics: str) -> float:
    """The worker's peak memory in bytes, from the text of `/metrics`."""
    found = re.search(r"^img2img_worker_peak_memory_bytes\{.*\} (\S+)$", metrics, re.MULTILINE)
    if found is None:
        raise DemoFailed("/metrics does not hold img2img_worker_peak_memory_bytes.")
    return float(found[1])


def report(console: Console, edited: Edited, path: Path, model: dict[str, str]) -> None:
    """The saved file, and the parameters of the image."""

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    say(f"Saved {path}")
    say(f"Seed {edited.seed}, {edited.steps_run} steps, by {model['model']} on {model['device']} in {model['dtype']}.")
    if model["model"] == "embedded":
        say(SMALL)


def times(edited: Edited, startup: float, request: float) -> Table:
    """A table of the time of each stage."""
    table = Table("stage", title_justify="left")
    table.add_column("seconds", justify="right")
    rows: dict[str, Any] = {"start-up": startup, **edited.seconds, "request in all": request}
    for stage, seconds in rows.items():
        table.add_row(stage, f"{seconds:.3f}")
    return table


def main() -> int:
    """Run the demo; returns the exit code."""
    options = parse_arguments()
    # Handled like Ctrl-C, so that the service is stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(options, Console())
    except (DemoFailed, Img2ImgError, NoService, OSError) as error:
        print(f"scripts/demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("scripts/demo: stopped.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
