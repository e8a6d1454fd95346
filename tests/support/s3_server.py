"""An S3 server of moto's on loopback, which can be told to refuse requests and to cut connections."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

CUT = "cut"
KEYS = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "topsecret", "AWS_DEFAULT_REGION": "us-east-1"}
BUSY = ("503 Slow Down", "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>")
DENIED = ("403 Forbidden", "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")


class S3Server:
    """The server; `requests` are "METHOD /path?query" since it was last cleared.

    Attributes:
        fault: takes a request; returns None, `CUT` or the status and body of a refusal.
    """

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.requests: list[str] = []
        self.fault: Callable[[str], Any] = lambda request: None
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        query = environ["QUERY_STRING"]
        path = environ["PATH_INFO"].encode("latin-1").decode()
        request = f"{environ['REQUEST_METHOD']} {path}" + (f"?{query}" if query else "")
        self.requests.append(request)
        fault = self.fault(request)
        if fault is None:
            answer: Iterable[bytes] = self._app(environ, start_response)
            return answer
        size = int(environ.get("CONTENT_LENGTH") or 0)
        if fault == CUT:
            environ["wsgi.input"].read(size // 2)
            environ["werkzeug.socket"].shutdown(2)
            raise ConnectionError
        status, body = fault
        environ["wsgi.input"].read(size)
        start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body.encode()]


@contextmanager
def named_by_environment(server: S3Server, attempts: int) -> Iterator[S3Server]:
    """Let the environment name the server and the times that a call is tried; at the end it has no fault."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": server.url, "AWS_MAX_ATTEMPTS": str(attempts)}.items():
            patched.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield server
    server.fault = lambda request: None


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None: ...
