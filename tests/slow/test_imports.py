"""Each module imported alone, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

APP = ROOT / "app"


FILES = sorted(APP.rglob("*.py"))


NAMES = {path: ".".join(path.relative_to(APP.parent).with_suffix("").parts).removesuffix(".__init__") for path in FILES}


IMPORT_EACH = """
import json, os, sys, threading

def look(name):
    folder = os.path.join(root, name)
    os.mkdir(folder)
    os.chdir(folder)
    for descriptor in (1, 2):
        os.dup2(os.open(os.path.join(root, f"{name}.{descriptor}"), os.O_CREAT | os.O_WRONLY), descriptor)
    try:
        __import__(name)
        sys.stdout.flush()
        return 0 if threading.active_count() == 1 and len(os.listdir("/proc/self/task")) == 1 else 3
    except BaseException:
        import traceback
        traceback.print_exc()
        sys.stderr.flush()
        return 4

root, names = sys.argv[1], sys.argv[2:]
clean = not any(name.partition(".")[0] == "app" for name in sys.modules)
codes = {}
for name in names if clean else []:
    child = os.fork()
    if child == 0:
        os._exit(look(name))
    codes[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(codes))
"""
"""Imports each module in a fork of an interpreter that has imported only a few modules of the standard library."""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the threads of a process from /proc")
def test_import_of_each_module_alone_has_no_side_effect(tmp_path: Path) -> None:
    """Each module reads no settings (the one set here is invalid), starts no thread, prints and writes nothing."""
    names = [name for name in NAMES.values() if not name.startswith("app.model.") and name != "app.cli.doctor"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_EACH, str(tmp_path), *names],
        env={"PYTHONPATH": str(APP.parent), "IMG2IMG_MAX_BATCH": "nonsense", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    codes = json.loads(done.stdout)
    assert list(codes) == names
    seen = {
        name: (
            code,
            *((tmp_path / f"{name}.{number}").read_text() for number in (1, 2)),
            [path.name for path in (tmp_path / name).iterdir()],
        )
        for name, code in codes.items()
    }
    assert {name: one for name, one in seen.items() if one != (0, "", "", [])} == {}
