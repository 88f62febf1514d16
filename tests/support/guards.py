"""Guard tests: each thing that is missing is a sentence."""

from collections.abc import Iterable

import pytest


def fail_with(sentences: Iterable[str]) -> None:
    """Fail the test with all sentences, one a line; pytest shortens a list in an assertion to its first entry."""
    if found := list(sentences):
        pytest.fail("\n".join(found), pytrace=False)
