"""What every request passes first: who asks, from where, and how large the body is; and the form of refusals."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from codi_hub.config.serve import ServeOptions
from codi_hub.errors import CodiError, InvalidInput, Mismatch, NotFound, UsageError, describe, one_line
from codi_hub.serve.login import PATH as LOGIN
from codi_hub.serve.login import Login
from codi_hub.serve.metrics import Metrics
from codi_hub.serve.queue import QueueFull, Stopping

if TYPE_CHECKING:
    from codi_hub.serve.web import WebPage

log = logging.getLogger(__name__)

OPEN = ("/health", "/v1/images/files/")  # answered without a token: a link to an image cannot be guessed
KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
STATUS: Mapping[type[Exception], int] = {
    QueueFull: 429, Stopping: 503, NotFound: 404, UsageError: 400, InvalidInput: 400, Mismatch: 400, CodiError: 500,
    MemoryError: 503,
}  # fmt: skip


class Refused(Exception):
    """A request that is refused with a status of HTTP and one line."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def answer(status: int, message: object, code: str | None = None, param: str | None = None) -> JSONResponse:
    """Return an error in OpenAI's form."""
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    text = one_line(message, 400)
    headers = {"Retry-After": "5"} if status in (429, 503) else {}
    error = {"message": text, "type": kind, "param": param, "code": code}
    return JSONResponse({"error": error}, status, headers)


def refusal(error: Exception) -> JSONResponse:
    """Return the answer to an error of the library; one that nobody expected says no more than its class."""
    if isinstance(error, Refused):
        return answer(error.status, error)
    status = next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)
    if isinstance(error, MemoryError):
        return answer(status, "not enough memory for this image: send a smaller one")
    if not isinstance(error, CodiError):
        return answer(500, f"unexpected {type(error).__name__}")
    field, colon, _ = str(error).partition(": ")
    return answer(status, error, "model_not_found" if status == 404 else None, field if colon else None)


def is_loopback(host: str) -> bool:
    """Whether an address to listen on, or a name in a request, is this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class Guard:
    """An ASGI middleware: token, origin, size and time of a request.

    A server for this machine alone is called localhost: a name that leads here from elsewhere is refused, since by it a
    web page could read answers (DNS rebinding). Web pages of other origins are refused in any case but those named.

    Args:
        app: what answers the others.
        options: token, origins and limits.
        metrics: counts the answers.
        page: the page, if there is one.
        login: where there is a token: lets browsers see the page, and the page alone.

    Attributes:
        stopping: everything new is answered 503.
    """

    def __init__(
        self, app: ASGIApp, options: ServeOptions, metrics: Metrics, page: WebPage | None, login: Login | None
    ) -> None:
        self.app, self.options, self.metrics, self.stopping = app, options, metrics, False
        self.page, self.login = page, login
        self.local = is_loopback(options.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, statuses = time.perf_counter(), [500]

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
            await send(message)

        try:
            if refused := self._refused(Request(scope)):
                await refused(scope, receive, watched)
            else:
                await self.app(scope, self._bounded(receive), watched)
        except Exception as error:  # it was answered 500
            log.error("unexpected %s", describe(error), exc_info=bool(os.environ.get("CODI_DEBUG")))
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, statuses[-1]).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - begun)

    def _refused(self, request: Request) -> Response | None:
        headers = request.headers
        if self.stopping:
            return answer(503, "the server is stopping")
        name = urlsplit(f"//{headers.get('host', '')}").hostname or ""
        if self.local and not self.options.token and not is_loopback(name):
            return answer(403, f"the server is called localhost, not {name!r:.60}")
        origin = headers.get("origin")
        if origin and origin not in self.options.origins and urlsplit(origin).netloc != headers.get("host"):
            return answer(403, f"web pages of {origin!r:.60} may not call this server; start it with --cors")
        if refused := self._unauthorized(request):
            return refused
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.options.max_body:
            return answer(413, f"the request has {length:.20} bytes, over the limit of {self.options.max_body}")
        return None

    def _unauthorized(self, request: Request) -> Response | None:
        """Return the answer to a request without the token, if there is one: for the page itself its login."""
        method, path = request.method, request.url.path
        if self.login is None or path.startswith(OPEN) or method == "OPTIONS":
            return None
        sent = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if hmac.compare_digest(sent, (self.options.token or "").encode()):
            return None
        if self.page:
            if (method, path) == ("POST", LOGIN) or (self.page.has(method, path) and self.login.knows(request)):
                return None
            if (method, path) == ("GET", "/"):
                return self.login.form()
        return answer(401, "the API key is missing or wrong", "invalid_api_key")

    def _bounded(self, receive: Receive) -> Receive:
        """Return what receives a body, as long as it is not too large or too slow."""
        received, complete = 0, False
        end = asyncio.get_running_loop().time() + self.options.max_time

        async def bounded() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                raise Refused(408, f"the request took over {self.options.max_time:g} seconds to arrive") from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body")
            if received > self.options.max_body:
                raise Refused(413, f"the request has over {self.options.max_body} bytes, the limit")
            return message

        return bounded
