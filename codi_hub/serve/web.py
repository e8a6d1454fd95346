"""gradio's application behind a filter: the page reaches what it uses, and nothing else of gradio's can be reached."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from codi_hub.errors import UsageError, describe
from codi_hub.serve.guard import Refused, answer, refusal

if TYPE_CHECKING:
    from codi_hub.serve.api import Service

log = logging.getLogger(__name__)

API = "/gradio_api"
FILE = f"{API}/file="
CALLS, UPLOAD = (f"{API}/queue/join", f"{API}/run/predict"), f"{API}/upload"
GET = re.compile(
    rf"/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|(assets|static|svelte)/.*)?"
    rf"|{API}/(info|app_id|startup-events|upload_progress|theme\.css|heartbeat/\w+|queue/data)"
)
POST = re.compile(rf"{UPLOAD}|{'|'.join(CALLS)}|{API}/(cancel|reset|startup-events)")
MAX_CALL = 1 << 20  # bytes of what a click sends: uploads were sent before it
KEPT = 512 << 20  # bytes of uploads and results on the disk; the oldest go first
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "frame-ancestors 'none'; form-action 'self'; base-uri 'self'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class WebPage:
    """The page as an ASGI application and an asynchronous context.

    gradio takes seconds to be imported: this is done while the server listens already, and requests wait for it.

    Args:
        service: what the page asks for images.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.folder = Path()
        self._app: ASGIApp | None = None

    @staticmethod
    def has(method: str, path: str) -> bool:
        """Return whether a request is one of the page's."""
        if method in ("GET", "HEAD"):
            return bool(GET.fullmatch(path)) or path.startswith(FILE)
        return method == "POST" and bool(POST.fullmatch(path))

    async def __aenter__(self) -> Self:
        self._ready, self._stopping = asyncio.Event(), asyncio.Event()
        self._running = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *error: object) -> None:
        self.stop()
        await self._running

    def stop(self) -> None:
        """End the event streams, which browsers keep open."""
        self._stopping.set()

    async def _run(self) -> None:
        with tempfile.TemporaryDirectory(prefix="codi-page-", ignore_cleanup_errors=True) as name:
            self.folder = Path(name).resolve()
            try:
                app = await run_in_threadpool(mounted, self.service, self.folder)
                async with app.router.lifespan_context(app):
                    self._app = app
                    self._ready.set()
                    await self._stopping.wait()
            except Exception as error:
                log.error("the page cannot be shown: %s", describe(error), exc_info=bool(os.environ.get("CODI_DEBUG")))
            finally:
                self._app = None
                self._ready.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        if not self.has(method, path):
            await answer(404, f"{method} {path!r:.80}: Not Found")(scope, receive, send)
            return
        await self._ready.wait()
        if self._app is None:
            await answer(503, "the page cannot be shown; the API can be used")(scope, receive, send)
            return
        try:
            self._check_file(path)
            if path in CALLS:
                receive = await self._checked_call(receive)
            elif path == UPLOAD:
                await run_in_threadpool(trim, self.folder, KEPT)
        except (Refused, UsageError) as error:
            await refusal(error)(scope, receive, send)
            return
        await self._answered(scope, receive, send)

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let gradio answer, with headers that keep the page on this machine, until the server stops."""
        assert self._app is not None
        begun = ended = False

        async def headed(message: Message) -> None:
            nonlocal begun, ended
            if message["type"] == "http.response.start":
                begun = True
                MutableHeaders(scope=message).update(HEADERS)
            ended = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        answering = asyncio.ensure_future(self._app(scope, receive, headed))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([answering, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                answering.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await answering
                if begun and not ended:
                    await send({"type": "http.response.body", "body": b""})
                elif not begun:
                    await answer(503, "the server is stopping")(scope, receive, send)
            else:
                answering.result()
        finally:
            answering.cancel()
            stopping.cancel()

    def _check_file(self, path: str) -> None:
        """Raise Refused for a file that is not the page's own."""
        if path.startswith(FILE) and not self._owns(path.removeprefix(FILE)):
            raise Refused(404, "no such image, or it has expired")

    async def _checked_call(self, receive: Receive) -> Receive:
        """Return what receives the same body again. Raises Refused for one that names other files than uploads."""
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "the request ended early")
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > MAX_CALL:
                raise Refused(413, f"the request has over {MAX_CALL} bytes, the limit")
        try:
            document = json.loads(body)
            paths = [*_paths(document)]
        except (ValueError, RecursionError):
            raise UsageError("the body is not JSON") from None
        for path in paths:
            if not self._owns(path):
                raise UsageError("image: not an upload of this page; links are never fetched")
        whole = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return whole.pop() if whole else await receive()

        return again

    def _owns(self, path: Any) -> bool:
        try:
            return Path(path).resolve().is_relative_to(self.folder)
        except (OSError, TypeError, ValueError):
            return False


def mounted(service: Service, folder: Path) -> Any:
    """Import gradio and return an application with the page at its root. Its files go to the folder."""
    os.environ |= {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"}  # read where it is imported
    import gradio as gr
    from fastapi import FastAPI

    from codi_hub.serve import page

    blocks = page.Page(service, folder).blocks()
    blocks.queue(max_size=service.options.max_queue)
    return gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        blocks,
        path="/",
        allowed_paths=[str(folder)],
        footer_links=[],
        run_history=False,
        show_error=True,
        ssr_mode=False,
        enable_monitoring=False,
        max_file_size=service.options.max_body,
        theme=gr.themes.Default(**page.FONTS),
        css=page.CSS,
    )


def trim(folder: Path, budget: int) -> None:
    """Remove the oldest files of a folder until the others have at most `budget` bytes."""
    files = []
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if file.is_file():
                files.append((file.stat().st_mtime, file.stat().st_size, file))
    excess = sum(size for _, size, _ in files) - budget
    for _, size, file in sorted(files):
        if excess <= 0:
            break
        file.unlink(missing_ok=True)
        excess -= size


def _paths(value: Any) -> Iterator[Any]:
    """Return every `path` in a JSON document."""
    if isinstance(value, dict):
        if value.get("path") is not None:
            yield value["path"]
        value = [*value.values()]
    for part in value if isinstance(value, list) else ():
        yield from _paths(part)
