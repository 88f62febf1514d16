"""`python -m scripts.docs_pages` writes the generated parts of docs/; with --check it only says which are stale."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from scripts.docs_pages.command_line import commands
from scripts.docs_pages.errors import errors
from scripts.docs_pages.fields import VERTEX_PATH, dialect, parameters, response_headers
from scripts.docs_pages.metrics import alerts, metrics
from scripts.docs_pages.settings import settings
from scripts.docs_pages.tables import Incomplete

ROOT = Path(__file__).parents[2]

FORM, JSON = "multipart/form-data", "application/json"
PARTS: dict[str, Callable[[], str]] = {
    "alerts": alerts,
    "command line": commands,
    "errors": errors,
    "fields of AUTOMATIC1111": partial(dialect, "/sdapi/v1/img2img", JSON),
    "fields of Cog": partial(dialect, "/predictions", JSON),
    "fields of Hugging Face": partial(dialect, "/img2img", JSON),
    "fields of OpenAI": partial(dialect, "/v1/images/edits", FORM),
    "fields of Stability AI": partial(dialect, "/v2beta/stable-image/generate/sd3", FORM),
    "fields of Vertex AI": partial(dialect, VERTEX_PATH, JSON),
    "metrics": metrics,
    "parameters": parameters,
    "response headers": response_headers,
    "settings": settings,
}

PART = re.compile(r"^<!-- generated: (.+) -->\n(.*?)^<!-- end of \1 -->$", re.DOTALL | re.MULTILINE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if a part is stale, unknown or on no page, or if a description is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, and name the stale pages")
    check = parser.parse_args(arguments).check
    try:
        complaints = [*update(ROOT / "docs", check)]
    except Incomplete as error:
        complaints = [str(error)]
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return 1 if complaints else 0


def update(folder: Path, check: bool) -> list[str]:
    """Write the generated parts of all pages, or only compare them. Returns what is wrong, as sentences."""
    complaints, seen = [], set()
    for page in sorted(folder.rglob("*.md")):
        before = page.read_text(encoding="utf-8")
        name = page.relative_to(folder.parent)
        found = {match[1] for match in PART.finditer(before)}
        opened = set(re.findall(r"^<!-- generated: (.+) -->$", before, re.MULTILINE))
        complaints += [f"{name}: there is no generated part '{part}'." for part in sorted(found - set(PARTS))]
        complaints += [f"{name}: the line <!-- end of {part} --> is missing." for part in sorted(opened - found)]
        seen |= found
        after = PART.sub(lambda match: _part(match[1], match[0]), before)
        if after != before and check:
            complaints.append(f"{name} is stale: run scripts/docs and commit what it writes.")
        elif after != before:
            page.write_text(after, encoding="utf-8")
    complaints += [f"No page of docs/ has the generated part '{part}'." for part in sorted(set(PARTS) - seen)]
    return complaints


def _part(name: str, before: str) -> str:
    if name not in PARTS:
        return before
    return f"<!-- generated: {name} -->\n\n{PARTS[name]()}\n\n<!-- end of {name} -->"


if __name__ == "__main__":
    sys.exit(main())
