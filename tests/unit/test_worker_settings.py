"""A worker gets only the settings that it reads."""

import pickle

import pytest

from app.engine.messages import Start
from app.settings import Settings, WorkerSettings


def test_worker_settings_have_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(model="a/b", max_batch=3, api_keys="hidden-key", cors_origins="https://example.org")
    # Variables in the worker's environment have no effect.
    monkeypatch.setenv("IMG2IMG_MODEL", "another")
    sent = pickle.dumps(Start("loader", "cpu", settings.for_worker()))
    received = pickle.loads(sent)
    assert (received.settings.model, received.settings.max_batch) == ("a/b", 3)
    assert b"hidden-key" not in sent
    assert b"example.org" not in sent
    assert set(vars(received.settings)) == set(WorkerSettings.model_fields)
