"""The rules of the house that a program can check."""

import ast
import json
import os
import statistics
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

APP = ROOT / "app"
FILES = sorted(APP.rglob("*.py"))

MODEL_LIBRARIES = {"torch", "diffusers", "transformers"}


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in memory after a statement in a fresh interpreter."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(m.partition('.')[0] for m in sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_api_process_never_loads_torch() -> None:
    loaded = loaded_by("from app.cli.serve import serve; from app.main import create_app; create_app()")
    assert "fastapi" in loaded
    assert not loaded & {*MODEL_LIBRARIES, "numpy"}


def test_decoder_process_imports_pillow_and_little_else() -> None:
    """The process that opens hostile files holds no framework. Each core pays for its memory."""

    def modules(statement: str) -> set[str]:
        code = f"import sys\n{statement}\nprint(*sys.modules)"
        environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        command = [sys.executable, "-P", "-S", "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        # The import system's own modules have aliases in `importlib`.
        return {name for name in done.stdout.split() if not name.startswith("importlib._")}

    plugins = ", ".join(f"PIL.{name}ImagePlugin" for name in ("Png", "Jpeg", "Mpo", "Tiff", "WebP"))
    pillow = modules(f"import PIL.ImageOps, {plugins}")
    decoder = modules(f"import app.imaging.decoder_process, {plugins}")
    own = {"app", "app.errors", "app.imaging", "app.imaging.decode", "app.imaging.decoder_process"}
    own |= {"app.imaging.formats", "app.pixels"}
    # And those of the standard library that the exchange with the service needs.
    assert decoder - pillow <= own | {"resource", "signal", "socket", "_socket", "selectors", "select", "importlib"}
    assert len(decoder) <= 130, sorted(decoder)


@pytest.mark.parametrize("name", ["tests.support.fakes", "scripts.resilience.model"])
def test_fake_models_load_no_torch(name: str) -> None:
    assert not loaded_by(f"import app.worker.worker, {name}") & MODEL_LIBRARIES


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
