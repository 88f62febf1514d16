"""The container as people run it: started by the compose file, and looked at from outside."""

import hashlib
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

import httpx2
import pytest

from tests.container.docker import (
    HARDENED,
    IMAGE,
    Container,
    compose_up,
    docker,
    eventually,
    image_facts,
    needs_image,
    start,
    volume,
)
from tests.support.checkpoints import files_of
from tests.support.hub import HUB_PORT, run_hub
from tests.support.images import opened
from tests.support.paths import ROOT

pytestmark = needs_image

DEMO = (ROOT / "scripts/demo.png").read_bytes()
LONG = {"num_inference_steps": "50", "strength": "1"}


@pytest.fixture(scope="module")
def service() -> Iterator[Container]:
    """The compose file's service, shared by all tests that leave it running."""
    with compose_up() as container:
        yield container


def status_lines(service: Container, name: str) -> set[str]:
    """The values of a field of /proc/PID/status over all processes of the container."""
    return set(service.shell(f"grep -h '^{name}:' /proc/[0-9]*/status").replace(f"{name}:", "").split())


def on_board(service: Container) -> bool:
    """Whether the worker has a job in its hands."""
    return "img2img_jobs_on_board 1.0" in httpx2.get(f"{service.url}/metrics").text


def test_container_answers_the_demo_image_with_a_png(service: Container) -> None:
    answer = service.edit(DEMO)
    image = opened(answer.content)
    assert (answer.status_code, image.format, image.size) == (200, "PNG", (512, 512))
    image.verify()
    assert service.edit(DEMO).content == answer.content


def test_health_check_in_the_container_reports_healthy(service: Container) -> None:
    facts = service.facts()
    assert facts["Config"]["Healthcheck"]["Test"] == ["CMD", "img2img", "health"]
    last = facts["State"]["Health"]["Log"][-1]
    assert (last["ExitCode"], last["Output"].strip()) == (0, "Ready: embedded on cpu.")


def test_no_process_is_root_or_can_gain_a_capability(service: Container) -> None:
    processes = service.processes()
    assert any("app.worker.worker" in command for _, command in processes)
    assert {uid for uid, _ in processes} == {"10001"}
    assert status_lines(service, "Gid") == {"10001"}
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert status_lines(service, name) == {"0" * 16}
    assert status_lines(service, "NoNewPrivs") == {"1"}


def test_only_the_volume_and_tmp_are_writable(service: Container) -> None:
    places = "/ /opt /opt/venv/bin /etc /home /root /usr/local/bin /var/tmp /run /data /data/hf /tmp"
    writable = service.shell(f"for d in {places}; do touch $d/probe 2>/dev/null && echo $d; done; true")
    assert writable.split() == ["/data", "/data/hf", "/tmp"]
    options = service.shell("grep ' / ' /proc/mounts").split()[3].split(",")
    assert "ro" in options


def test_container_has_the_limits_of_the_compose_file(service: Container) -> None:
    facts = service.facts()
    host = facts["HostConfig"]
    assert (host["Memory"], host["PidsLimit"], host["Init"]) == (16 * 2**30, 2048, True)
    assert host["Ulimits"] == [{"Name": "core", "Hard": 0, "Soft": 0}]
    assert host["Tmpfs"] == {"/tmp": "size=256m,mode=1777"}
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert (facts["Config"]["StopTimeout"], facts["Config"]["StopSignal"]) == (45, "SIGTERM")
    assert {binding["HostIp"] for (binding,) in host["PortBindings"].values()} == {"127.0.0.1"}


def test_weights_are_in_a_named_volume_and_keys_read_only(service: Container) -> None:
    mounts = {mount["Destination"]: mount for mount in service.facts()["Mounts"]}
    assert (mounts["/data"]["Type"], mounts["/data"]["Name"].rpartition("_")[2]) == ("volume", "models")
    assert (mounts["/data"]["RW"], mounts["/keys"]["RW"]) == (True, False)


def test_image_alone_runs_on_the_terms_of_the_compose_service(service: Container) -> None:
    alone, composed = image_facts(IMAGE)["Config"], service.facts()["Config"]
    for name in ("User", "Entrypoint", "Cmd", "Healthcheck", "StopSignal", "ExposedPorts"):
        assert alone[name] == composed[name], name
    assert list(alone["Volumes"]) == ["/data"]


def test_killed_worker_is_replaced_and_its_request_answered(service: Container) -> None:
    undisturbed = service.edit(DEMO, **LONG)
    before, worker = service.facts(), service.worker()
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(service.edit, DEMO, **LONG)
        eventually(lambda: on_board(service))
        service.shell(f"kill -9 {worker}")
        answer = request.result()
    assert (answer.status_code, answer.content == undisturbed.content) == (200, True)
    assert service.worker() not in ("", worker)
    after = service.facts()
    assert after["RestartCount"] == 0
    assert after["State"]["StartedAt"] == before["State"]["StartedAt"]


def test_docker_stop_lets_a_running_request_finish() -> None:
    with compose_up() as service:
        undisturbed = service.edit(DEMO, **LONG)
        with ThreadPoolExecutor(1) as pool:
            request = pool.submit(service.edit, DEMO, **LONG)
            eventually(lambda: on_board(service))
            docker("stop", service.id)
            answer = request.result()
        assert (answer.status_code, answer.content == undisturbed.content) == (200, True)
        state = service.facts()["State"]
        assert (state["Status"], state["ExitCode"], state["OOMKilled"]) == ("exited", 0, False)


def test_service_that_loses_its_worker_for_good_is_restarted() -> None:
    with compose_up(IMG2IMG_MAX_WORKER_DEATHS="2") as service, exit_codes(service) as codes:
        for _ in range(2):
            worker = eventually(service.worker)
            service.shell(f"kill -9 {worker}")
            eventually(partial(gone, service, worker))
        eventually(lambda: service.facts()["RestartCount"] == 1)
        assert "ended: " in service.logs()
        assert codes.readline() == "1\n"
        eventually(service.is_ready)
        assert service.edit(DEMO).status_code == 200


def test_keys_come_from_a_folder_of_the_host_and_can_change(tmp_path: Path) -> None:
    def exchange(key: str) -> None:
        new = tmp_path / "new"
        new.write_text(f"{key}\n")
        new.rename(tmp_path / "api-keys")

    tmp_path.chmod(0o755)
    exchange("first-key")
    with compose_up(KEYS_FOLDER=str(tmp_path), IMG2IMG_API_KEYS_FILE="/keys/api-keys") as guarded:

        def answers(key: str) -> int:
            return httpx2.get(f"{guarded.url}/metrics", headers={"X-API-Key": key}).status_code

        assert (answers("first-key"), answers("second-key")) == (200, 401)
        exchange("second-key")
        eventually(lambda: answers("second-key") == 200)
        assert answers("first-key") == 401


@contextmanager
def exit_codes(service: Container) -> Iterator[IO[str]]:
    """What the container's ends say from now on, a line each: Docker remembers only the last few hundred events."""
    filters = ["--filter", f"container={service.id}", "--filter=event=die", "--format={{.Actor.Attributes.exitCode}}"]
    with subprocess.Popen([os.environ["DOCKER"], "events", *filters], stdout=subprocess.PIPE, text=True) as events:
        assert events.stdout
        yield events.stdout
        events.terminate()


def gone(service: Container, worker: str) -> bool:
    try:
        return service.worker() != worker
    except AssertionError:
        # The container itself has ended.
        return True


def test_unloadable_model_ends_the_container_with_a_reason() -> None:
    with start(*HARDENED, IMG2IMG_MODEL="/no/such/model") as container:
        assert int(docker("wait", container.id)) != 0
        assert "/no/such/model" in container.logs().splitlines()[-1]


def test_second_start_uses_the_volume_without_a_network(tiny_checkpoint: Path) -> None:
    with volume() as models, run_hub(HUB_PORT) as hub:
        hub.add("example/turbo", "a" * 40, files_of(tiny_checkpoint))
        options = (*HARDENED, f"--volume={models}:/data")
        model, endpoint = "example/turbo@" + "a" * 40, f"http://127.0.0.1:{HUB_PORT}"
        with start(
            *options, network="host", IMG2IMG_HOST="127.0.0.1", IMG2IMG_MODEL=model, HF_ENDPOINT=endpoint
        ) as first:
            eventually(first.is_ready)
            picture = first.edit(DEMO).content
        fetched = len(hub.fetched)
        assert fetched > 0
        with start(*options, network="none", IMG2IMG_MODEL=model, HF_ENDPOINT=endpoint) as second:
            eventually(second.is_healthy)
            arguments = "--prompt 'dog wizard' --seed 1 --output /tmp/out.png"
            docker("cp", str(ROOT / "scripts/demo.png"), f"{second.id}:/data/demo.png")
            second.shell(f"img2img edit /data/demo.png {arguments}")
            assert second.shell("sha256sum </tmp/out.png").split()[0] == hashlib.sha256(picture).hexdigest()
        assert len(hub.fetched) == fetched


def test_nothing_is_written_outside_the_volume_and_tmp() -> None:
    with start("--cap-drop=ALL") as container:
        eventually(container.is_ready)
        assert container.edit(DEMO).status_code == 200
        assert container.edit(b"no picture").status_code == 415
        eventually(container.is_healthy)
        changed = [line.split(maxsplit=1)[1] for line in docker("diff", container.id).splitlines()]
        assert [path for path in changed if path != "/tmp" and not path.startswith("/tmp/")] == []


@pytest.mark.parametrize("user", ["0:0", "1000:1000"])
def test_container_has_the_routes_of_inference_platforms(user: str, tiny_checkpoint: Path) -> None:
    """SageMaker's and Hugging Face's: the argument `serve`, PORT, their routes, a model mounted as a folder."""
    tiny_checkpoint.chmod(0o755)
    mount = f"--volume={tiny_checkpoint}:/opt/ml/model:ro"
    with start(mount, f"--user={user}", command=("serve",), PORT="8080", IMG2IMG_MODEL="/opt/ml/model") as container:
        eventually(container.is_ready)
        for route in ("/ping", "/health"):
            answer = httpx2.get(f"{container.url}{route}")
            assert (answer.status_code, answer.json()["model"]["model"]) == (200, "/opt/ml/model")
        answers = [container.edit(DEMO, route) for route in ("/img2img", "/invocations")]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert answers[0].content == answers[1].content
        container.execute("img2img", "health")
