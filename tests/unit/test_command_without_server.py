"""The command `img2img` where only the client is installed."""

import sys

import pytest

from app.__main__ import main


def test_command_without_the_server_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "app.cli.app", None)
    with pytest.raises(SystemExit) as ended:
        main()
    assert "needs the module app.cli.app" in str(ended.value)
    assert "[server]" in str(ended.value)
