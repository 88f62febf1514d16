"""The rules of the house that a program can check."""

import ast
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

APP = Path(__file__).parent.parent / "app"
FILES = sorted(APP.rglob("*.py"))
NAMES = {path: ".".join(path.relative_to(APP.parent).with_suffix("").parts).removesuffix(".__init__") for path in FILES}

# A module imports only from lines above its own.
LAYERS = [
    ["app", "app.engine", "app.routes"],
    [
        "app.errors",
        "app.settings",
        "app.logs",
        "app.tracing",
        "app.client.answers",
        "app.turns",
        "app.engine.memory",
        "app.engine.transfer",
        "app.engine.weights",
    ],
    [
        "app.client.wire",
        "app.request",
        "app.metrics",
        "app.formats",
        "app.files",
        "app.png",
        "app.engine.cache",
        "app.engine.compiled",
        "app.engine.packed",
        "app.engine.stepping",
    ],
    ["app.client.asynchronous", "app.client.blocking", "app.engine.jobs", "app.keys", "app.otel", "app.refusals"],
    [
        "app.client",
        "app.images",
        "app.infotext",
        "app.engine.batch",
        "app.engine.framing",
        "app.engine.failures",
        "app.engine.fair",
        "app.engine.faults",
        "app.engine.warmup",
        "app.engine.encoders",
        "app.engine.previews",
        "app.engine.admission",
        "app.engine.hub",
        "app.middleware",
    ],
    ["app.engine.checkpoint", "app.engine.process", "app.decoder", "app.gate"],
    ["app.engine.diffusion", "app.engine.worker", "app.engine.lane"],
    ["app.engine.engine", "app.sandbox", "app.signing"],
    ["app.service"],
    ["app.routes.accept", "app.routes.bodies", "app.routes.common", "app.routes.schema"],
    ["app.routes.events", "app.routes.webui_fields", "app.routes.webui_runs"],
    [
        "app.routes.cog",
        "app.routes.img2img",
        "app.routes.openai",
        "app.routes.platforms",
        "app.routes.stability",
        "app.routes.system",
        "app.routes.webui",
    ],
    ["app.main"],
    ["app.server"],
    ["app.console"],
    ["app.doctor", "app.editing"],
    ["app.cli"],
    ["app.__main__"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
TENSORS = {
    f"app.engine.{name}"
    for name in (
        *("checkpoint", "compiled", "diffusion", "encoders", "faults", "packed", "previews", "stepping", "transfer"),
        "weights",
    )
}
LOADS_TORCH = {*TENSORS, "app.doctor"}
MODEL_LIBRARIES = {"torch", "diffusers", "transformers"}


def imports(path: Path) -> Iterator[str]:
    """Full names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module
            assert node.level == 0
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in inner if name in LEVEL)
            if not all(name in LEVEL for name in inner):
                yield node.module


def own_imports(path: Path) -> list[str]:
    return [name for name in imports(path) if name == "app" or name.startswith("app.")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: NAMES[path])
def test_imports_point_one_way_only(path: Path) -> None:
    for name in own_imports(path):
        assert LEVEL[name] < LEVEL[NAMES[path]], f"{NAMES[path]} imports {name}"


def test_a_route_imports_the_service_what_it_is_asked_and_what_it_answers_and_nothing_below_them() -> None:
    for path in (APP / "routes").glob("*.py"):
        allowed = {"app.service", "app.request", "app.errors", "app.refusals", "app.infotext"}
        assert {name for name in own_imports(path) if not name.startswith("app.routes")} <= allowed


def test_the_model_libraries_are_imported_in_the_files_of_tensors_only() -> None:
    users = {NAMES[path] for path in FILES if any(name.partition(".")[0] in MODEL_LIBRARIES for name in imports(path))}
    assert users == TENSORS


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in memory after a statement in a fresh interpreter."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(m.partition('.')[0] for m in sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_the_api_process_never_loads_torch() -> None:
    loaded = loaded_by("from app.server import serve; from app.main import create_app; create_app()")
    assert "fastapi" in loaded
    assert not loaded & {*MODEL_LIBRARIES, "numpy"}


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
def test_import_of_any_module_alone_has_no_side_effect(tmp_path: Path) -> None:
    """Each module reads no settings (the one set here is invalid), starts no thread, prints and writes nothing."""
    names = [name for name in LEVEL if name not in LOADS_TORCH]
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


def test_files_and_functions_stay_small() -> None:
    lines = {path: path.read_text().count("\n") for path in FILES}
    functions = [
        (node.end_lineno or 0) - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert max(lines.values()) <= 350, max(lines, key=lambda path: lines[path])
    assert statistics.median(lines.values()) <= 130
    assert statistics.median(functions) <= 10
    assert max(functions) <= 80
    assert sum(length > 50 for length in functions) <= 0.03 * len(functions)
