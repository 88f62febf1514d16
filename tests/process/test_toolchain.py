"""What `torch.compile` needs of the machine: compilers, headers, and a folder that code can run from."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from app.errors import CheckpointError
from app.model import toolchain
from tests.support.paths import ROOT

ON_NOEXEC = """
import os, sys
from pathlib import Path
from app.errors import CheckpointError
from app.model.toolchain import folder_problem, use_cache
print(folder_problem(Path(sys.argv[1])))
os.environ["TORCHINDUCTOR_CACHE_DIR"] = sys.argv[1] + "/other"
try:
    use_cache(Path(sys.argv[1]))
except CheckpointError as error:
    print(error)
"""
NO_TOOLS = "needs a C compiler and Python.h (Debian: python3-dev): install g++"


@pytest.fixture(autouse=True)
def same_variables_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "default"))
    monkeypatch.setenv("TRITON_CACHE_DIR", "")
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)


def add_program(folder: Path, name: str) -> None:
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)


def cache_variables() -> list[str]:
    return [os.environ[name] for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")]


class TestTools:
    def test_missing_tools_are_named_with_what_to_install(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(toolchain, "_headers", lambda: tmp_path)
        assert toolchain.missing_tools(on_cuda=True).startswith(NO_TOOLS)
        assert toolchain.missing_tools(on_cuda=False).startswith("needs a C++ compiler: install g++")

    @pytest.mark.parametrize(("cxx", "c"), [("g++", "gcc"), ("clang++", "clang")])
    def test_gcc_or_clang_with_the_headers_is_enough(
        self, cxx: str, c: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(toolchain, "_headers", lambda: tmp_path)
        add_program(tmp_path, cxx)
        assert toolchain.missing_tools(on_cuda=False) == ""
        assert toolchain.missing_tools(on_cuda=True).startswith("needs a C compiler and Python.h")
        add_program(tmp_path, c)
        assert toolchain.missing_tools(on_cuda=True).startswith("needs Python.h")
        (tmp_path / "Python.h").touch()
        assert toolchain.missing_tools(on_cuda=True) == ""

    def test_compilers_of_the_environment_are_found(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        for variable in ("CC", "CXX"):
            add_program(tmp_path, variable.lower())
            monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
        (tmp_path / "Python.h").touch()
        monkeypatch.setattr(toolchain, "_headers", lambda: tmp_path)
        assert [toolchain.missing_tools(on_cuda=on_cuda) for on_cuda in (True, False)] == ["", ""]

    @pytest.mark.parametrize("scheme", ["posix_local", "posix_prefix"])
    def test_headers_are_not_looked_for_in_the_local_scheme(self, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sysconfig.get_default_scheme", lambda: scheme)
        assert toolchain._headers() == Path(sys.base_prefix) / f"include/python3.{sys.version_info.minor}"


class TestCache:
    def test_folder_of_the_setting_is_made_and_used_by_inductor_and_triton(self, tmp_path: Path) -> None:
        cache = tmp_path / "not" / "yet"
        toolchain.use_cache(cache)
        assert cache.is_dir()
        assert cache_variables() == [str(cache), str(cache / "triton")]

    def test_default_is_a_folder_for_temporary_files_of_this_user(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
        toolchain.use_cache(None)
        folder = f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}"
        assert cache_variables() == [folder, f"{folder}/triton"]

    def test_unusable_folder_is_logged_and_another_is_used(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "file").touch()
        # A folder that cannot be created, and an existing one that is read-only.
        for folder in (tmp_path / "file" / "below", Path("/proc/self")):
            caplog.clear()
            toolchain.use_cache(folder)
            assert (
                f"compiled code is kept in {tmp_path}/default, and the next start may compile again: {folder} is "
                "read-only, full or mounted noexec" in caplog.text
            )
            assert cache_variables() == [f"{tmp_path}/default", f"{tmp_path}/default/triton"]

    def test_no_usable_folder_is_refused_with_what_to_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/proc/self/cache")
        with pytest.raises(
            CheckpointError, match="There is no folder for compiled code: /proc/self is read-only"
        ) as no:
            toolchain.use_cache(Path("/proc/self"))
        assert "Set IMG2IMG_COMPILE_CACHE to a folder" in str(no.value)

    def test_folder_that_is_mounted_noexec_is_refused(self, tmp_path: Path) -> None:
        mount = f"mount -t tmpfs -o noexec,size=1m tmpfs '{tmp_path}'"
        if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, check=False).returncode:
            pytest.skip("a file system can be mounted by root only")
        run = f"{mount} && '{sys.executable}' -c '{ON_NOEXEC}' '{tmp_path}'"
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", run], env=environment, capture_output=True, text=True, check=True
        )
        problem, refused = done.stdout.splitlines()
        assert problem == f"{tmp_path} is read-only, full or mounted noexec (Operation not permitted)"
        assert refused.startswith(f"There is no folder for compiled code: {problem}; {tmp_path}/other is read-only")
