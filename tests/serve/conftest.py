"""A real server on loopback with the bundled adapters, and clients of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest
import requests

from codi_hub.config.serve import ServeOptions
from codi_hub.serve.server import Server, serve

EXACT: dict[str, Any] = {"device": "cpu", "dtype": "fp32"}


class Running(NamedTuple):
    """A server that runs in a thread."""

    url: str
    server: Server
    home: Path

    @property
    def client(self) -> openai.OpenAI:
        """OpenAI's own client, without its retries."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0)

    def post(self, path: str, **arguments: Any) -> requests.Response:
        return requests.post(self.url + path, timeout=120, **arguments)

    def get(self, path: str, **arguments: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=30, **arguments)


Serving = Callable[..., Any]


@contextmanager
def serving(home: Path, *, page: bool = False, **options: Any) -> Iterator[Running]:
    """Serve in a thread, until the block ends."""
    found: list[Running] = []
    ready = threading.Event()

    def listening(url: str, server: Server) -> None:
        found.append(Running(url, server, home))
        ready.set()

    def run() -> None:
        try:
            serve(ServeOptions(port=0, page=page, **EXACT, **options), listening, home)
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(60)
    assert found, "the server did not start"
    try:
        yield found[0]
    finally:
        found[0].server.stop()
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with small limits on the bundled base."""
    with serving(tmp_path_factory.mktemp("home"), max_pixels=300_000, max_body="1MB", max_queue=20) as started:
        yield started
