"""`img2img doctor` without permission to read the model or the cache."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


class TestPermissions:
    """In a process of its own, without root's permissions."""

    @pytest.fixture
    def closed(self, tmp_path: Path) -> Path:
        folder = tmp_path / "closed"
        folder.mkdir()
        folder.chmod(0)
        return folder

    @staticmethod
    def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        if os.geteuid() == 0:
            if not shutil.which("setpriv"):
                pytest.skip("setpriv is not installed")
            command = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", *command)
        environment = {**os.environ, "IMG2IMG_DEVICES": "cpu", "IMG2IMG_PORT": "0", **variables}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    def test_unreadable_model_folder_is_reported(self, closed: Path) -> None:
        said = f"IMG2IMG_MODEL={closed}/model cannot be read: Permission denied."
        done = self.run(sys.executable, "-m", "app", "doctor", IMG2IMG_MODEL=f"{closed}/model")
        assert (done.returncode, f"\n- {said}\n" in done.stdout, done.stderr) == (1, True, "")
        done = self.run(sys.executable, "-m", "app", "serve", IMG2IMG_MODEL=f"{closed}/model")
        lines = [json.loads(line) for line in done.stderr.splitlines()]
        assert (done.returncode, lines[-1]["message"]) == (1, f"ended: {said}")

    def test_unreadable_cache_is_reported(self, closed: Path) -> None:
        done = self.run(
            *(sys.executable, "-m", "app", "doctor"), IMG2IMG_MODEL="owner/name", IMG2IMG_HUB_CACHE=f"{closed}/hub"
        )
        assert f"- {closed}/hub cannot be written to" in done.stdout
        assert done.stderr == ""

    def test_unreadable_weights_are_reported_with_their_path(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
        weights = next((folder / "unet").glob("*.safetensors"))
        weights.chmod(0)
        said = f"{weights} cannot be read: check its permissions."
        done = self.run(sys.executable, "-m", "app", "doctor", IMG2IMG_MODEL=str(folder))
        assert (done.returncode, f"\n- {said}\n" in done.stdout, done.stderr) == (1, True, "")
