"""The routes of batches, and of the files that OpenAI's client makes them of."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.responses import StreamingResponse

from codi_hub.errors import CodiError, UsageError
from codi_hub.serve.queue import QueueFull
from codi_hub.serve.schema import json_object

if TYPE_CHECKING:
    from codi_hub.serve.batches import Batches

LOOK = 0.3  # seconds between two looks at a batch that is followed
BEAT = 50  # looks without a change after which a comment keeps the connection open
FOLLOWERS = 64  # event streams at a time
JSON_LINES = "application/jsonl"
CREATE = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "requests": {"type": "array", "items": {"type": "object"}},
                        "input_file_id": {"type": "string"},
                        "metadata": {"type": "object"},
                    },
                }
            }
        },
    }
}


class Followers:
    """The clients that follow a batch by server-sent events."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._count = 0

    async def follow(self, name: str) -> StreamingResponse:
        """Answer with the batch whenever it has changed. Raises NotFound or QueueFull."""
        await run_in_threadpool(self._batches.get, name)
        if self._count >= FOLLOWERS:
            raise QueueFull(f"{FOLLOWERS} batches are followed, and no more can be: ask for the batch itself")
        headers = {"Cache-Control": "no-store"}
        return StreamingResponse(self._events(name), media_type="text/event-stream", headers=headers)

    async def _events(self, name: str) -> AsyncIterator[str]:
        """Yield events until the batch has ended or the server stops."""
        self._count += 1
        try:
            last, quiet = None, 0
            while not self._batches.stopping:
                batch = await run_in_threadpool(self._batches.get, name)
                if batch != last:
                    yield f"event: progress\ndata: {json.dumps(batch)}\n\n"
                    last, quiet = batch, 0
                elif quiet >= BEAT:
                    yield ": \n\n"
                    quiet = 0
                if batch["status"] != "in_progress":
                    return
                quiet += 1
                await asyncio.sleep(LOOK)
        except CodiError:
            return  # it was removed
        finally:
            self._count -= 1


def routes(batches: Batches) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/v1")
    followers = Followers(batches)

    @router.post("/batches", summary="Start a batch of requests", openapi_extra=CREATE)
    async def create(request: Request) -> dict[str, Any]:
        return await run_in_threadpool(batches.create, json_object(await request.body()))

    @router.get("/batches", summary="List the batches")
    def list_batches(limit: int = 20, after: str | None = None) -> dict[str, Any]:
        found = batches.all()
        names = [one["id"] for one in found]
        found = found[names.index(after) + 1 if after in names else 0 :]
        page = found[: max(1, min(limit, 100))]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {}
        return {"object": "list", "data": page, "has_more": len(page) < len(found)} | ends

    @router.get("/batches/{name}", summary="Show a batch")
    def show(name: str) -> dict[str, Any]:
        return batches.get(name)

    @router.post("/batches/{name}/cancel", summary="End a batch")
    def cancel(name: str) -> dict[str, Any]:
        return batches.cancel(name)

    @router.get("/batches/{name}/results", summary="Get the answers so far, a line of JSON each")
    def results(name: str) -> StreamingResponse:
        return StreamingResponse(batches.store.results(name), media_type=JSON_LINES)

    @router.get("/batches/{name}/events", summary="Follow a batch by server-sent events")
    async def events(name: str) -> StreamingResponse:
        return await followers.follow(name)

    @router.post("/files", summary="Send the requests of a batch, a line of JSON each")
    async def upload(request: Request) -> dict[str, Any]:
        async with request.form(max_files=1, max_fields=8) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile) or form.get("purpose") != "batch":
                raise UsageError("file: a file of JSON lines, with the purpose batch")
            data = await file.read()
        return await run_in_threadpool(batches.store.upload, data)

    @router.get("/files/{name}/content", summary="Get the answers of a batch as one of OpenAI's files")
    def content(name: str) -> StreamingResponse:
        return StreamingResponse(batches.store.results(name), media_type=JSON_LINES)

    return router
