"""The helper of the guard tests."""

import pytest

from tests.support.guards import fail_with


def test_fail_with_names_every_sentence_on_its_own_line() -> None:
    sentences = [f"docs/page{i}.md has no row." for i in range(20)]
    with pytest.raises(pytest.fail.Exception) as failure:
        fail_with(iter(sentences))
    assert str(failure.value).splitlines() == sentences


def test_fail_with_no_sentence_passes() -> None:
    fail_with(iter([]))
