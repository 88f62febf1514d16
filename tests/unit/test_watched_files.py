"""Files that are read again when they change."""

import asyncio
import logging
from pathlib import Path

import pytest

from app.watched_files import Watched, refreshing


def test_watched_file_changed_is_reported_once(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("one")
    watched = Watched(file)
    assert not watched.changed(again=False)
    file.write_text("other")
    assert watched.changed(again=False)
    assert not watched.changed(again=False)
    assert watched.changed(again=True)
    file.unlink()
    assert watched.changed(again=False)


def test_refreshing_after_an_error_goes_on_and_stops_at_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("app.watched_files._RECHECK_SECONDS", 0.001)
    calls: list[str] = []

    def fail() -> None:
        calls.append("fail")
        raise OSError("no such disk")

    async def run() -> int:
        third = asyncio.Event()
        loop = asyncio.get_running_loop()

        def count() -> None:
            calls.append("count")
            if calls.count("count") == 3:
                loop.call_soon_threadsafe(third.set)

        async with refreshing(fail, count):
            await third.wait()
        return len(calls)

    with caplog.at_level(logging.ERROR):
        ended = asyncio.run(run())
    assert calls[:4] == ["fail", "count", "fail", "count"]
    assert len(calls) == ended
    assert "could not be read again" in caplog.text
    assert "no such disk" in caplog.text


def test_refreshing_nothing_starts_no_task() -> None:
    async def run() -> int:
        async with refreshing():
            return len(asyncio.all_tasks())

    assert asyncio.run(run()) == 1
