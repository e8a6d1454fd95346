"""Shared fixtures. Every test has a home of its own, so that none can touch the user's."""

from __future__ import annotations

import contextlib
import io
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings

settings.register_profile("codi", deadline=None, derandomize=True)  # shared machines are slow at times
settings.load_profile("codi")

signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)


class Answer(NamedTuple):
    """What a command gave back."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty CODI_HOME."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("CODI_HOME", str(folder))
    monkeypatch.delenv("CODI_REGISTRY_URL", raising=False)
    monkeypatch.delenv("CODI_DEBUG", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


@pytest.fixture
def codi() -> Callable[..., Answer]:
    """Runs a command in this process: `codi("task", "list", "--json")`."""
    from codi_hub import cli

    def run(*args: str | Path) -> Answer:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stopped:
            cli.main([str(arg) for arg in args])
        return Answer(int(stopped.value.code or 0), out.getvalue(), err.getvalue())

    return run
