"""Signed pictures from the image with what signs them, by files in the folder of keys."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.container.docker import IMAGE, compose_up, docker, eventually, needs_image, run, start
from tests.support.certificates import Authority, read
from tests.support.images import noise, saved
from tests.support.paths import ROOT

pytestmark = needs_image

VARIABLES = {"IMG2IMG_C2PA_CERTIFICATE": "/keys/certificate.pem", "IMG2IMG_C2PA_KEY": "/keys/key.pem"}


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.new()


@pytest.fixture
def folder(authority: Authority, tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    for file in authority.issue(tmp_path, ec.generate_private_key(ec.SECP256R1())):
        file.chmod(0o644)
    return tmp_path


@pytest.fixture
def signing_image() -> Iterator[str]:
    name = f"{IMAGE}-c2pa"
    run([sys.executable, "scripts/container/build.py", "--build-arg", "EXTRA=c2pa", "--tag", name, str(ROOT)])
    yield name
    docker("image", "rm", name)


def test_certificate_in_the_folder_of_keys_signs(signing_image: str, authority: Authority, folder: Path) -> None:
    with compose_up(IMAGE=signing_image, KEYS_FOLDER=str(folder), **VARIABLES) as service:
        answer = service.edit(saved(noise((24, 24)), "PNG"))
        assert answer.is_success
        assert read(answer.content, "image/png", authority)[0] == "Trusted"


def test_image_without_c2pa_says_how_to_install_it_and_ends(folder: Path) -> None:
    with start(f"--volume={folder}:/keys:ro", network="none", command=("serve",), **VARIABLES) as service:
        eventually(lambda: service.facts()["State"]["Status"] == "exited")
        assert service.facts()["State"]["ExitCode"] == 2
        assert "build the image with EXTRA=c2pa" in service.logs()
