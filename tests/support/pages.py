"""Reads the Markdown pages of the project: headings, links, tables, code."""

import re
import shlex
from pathlib import Path

from tests.support.paths import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "examples/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
_FENCE = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)


def read(name: str) -> str:
    """A page by its path in the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    """Relative links and images of a page."""
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(page)))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def code_spans(text: str) -> list[str]:
    """What is in backticks in a text."""
    return re.findall(r"`([^`\n]+)`", _FENCE.sub("", text))


def blocks(language: str, text: str) -> list[str]:
    """Blocks of code in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def section(text: str, title: str) -> str:
    """The text under a heading, up to the next one of its level."""
    level, _, _ = title.partition(" ")
    found = re.search(rf"^{re.escape(title)}\n(.*?)(?=^{level} |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, f"there is no heading '{title}'"
    return found[1]


def tables(text: str) -> list[list[list[str]]]:
    """The tables of a text, each as rows of cells without its head."""
    found = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [[_cells(row) for row in table.splitlines()[2:]] for table in found]


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def shell_commands(text: str) -> list[list[str]]:
    """Every command of the shell blocks as its words, up to the first redirection or pipe."""
    lines = "".join(blocks("sh", text)).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines if '"$(' not in line and "--8<--" not in line]
    return [re.split(r"\0[<>|]\0", "\0".join(words))[0].split("\0") for words in commands if words]
