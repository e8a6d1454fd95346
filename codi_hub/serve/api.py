"""The HTTP API: OpenAI's models and images, and what a server is watched by."""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request, Response
from fastapi_offline import FastAPIOffline
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

import codi_hub
from codi_hub.catalog import Catalog
from codi_hub.config.serve import ServeOptions
from codi_hub.errors import CodiError, NotFound, UsageError, prefixed
from codi_hub.operations.context import check_steps, check_variants
from codi_hub.registry import AdapterRow
from codi_hub.seeds import variant_seed
from codi_hub.serve import images, schema
from codi_hub.serve.batch_routes import routes
from codi_hub.serve.guard import Guard, Refused, answer, refusal
from codi_hub.serve.login import PATH as LOGIN
from codi_hub.serve.login import Login
from codi_hub.serve.metrics import Metrics
from codi_hub.serve.queue import Queue, Work
from codi_hub.serve.web import WebPage
from codi_hub.tasks import Task

if TYPE_CHECKING:
    from codi_hub.serve.batches import Batches

MAX_IMAGES = 16  # inputs of a request, as of OpenAI
MAX_FIELDS = 64
BLANK = (512, 512)  # width and height of an image that begins with nothing
DECODERS = 2  # requests that are decoded at a time
POLL = 0.25  # seconds between two looks whether a client is still there
IMAGE_FIELDS = ("image", "image[]", "images")


@dataclass
class Asked:
    """A request, read: its fields, and the files of its images and mask."""

    fields: dict[str, Any] = field(default_factory=dict)
    images: list[bytes] = field(default_factory=list)
    mask: bytes | None = None


class Service:
    """What the routes do.

    Args:
        options: of the server.
        catalog: finds adapters; asked by one thread at a time.
        queue: generates.
        metrics: counts.
    """

    def __init__(self, options: ServeOptions, catalog: Catalog, queue: Queue, metrics: Metrics) -> None:
        self.options, self.catalog, self.queue, self.metrics = options, catalog, queue, metrics
        self.kept = images.Kept()
        self._lock = threading.Lock()
        self.decoders = CapacityLimiter(DECODERS)  # each may fill a few times the pixels that a request may have

    def models(self) -> list[dict[str, Any]]:
        """Return every version and tag of the bases served, as OpenAI lists models; a task alone is its `latest`."""
        found = {}
        with self._lock:
            for number, base in enumerate(self.options.bases or (None,)):
                prefix = f"{base}/" if number else ""
                for row in self.catalog.list(base=base or self.catalog.registry.bases.get(None).name):
                    names = [f"{row.task}:{which}" for which in (row.version, *row.tags)]
                    for name in names if "latest" not in row.tags else [row.task, *names]:
                        found[prefix + name] = _model(prefix + name, row)
        return [*found.values()]

    def resolve(self, name: str) -> AdapterRow:
        """Return the adapter of a model's name: REF of the first base served, or BASE/REF. Raises NotFound."""
        base, slash, ref = name.rpartition("/")
        served = self.options.bases
        if slash and base not in served:
            raise NotFound(f"model {name!r:.80}: base {base!r:.60} is not served; see /v1/models")
        with self._lock:
            try:
                return self.catalog.registry.adapters.resolve(ref, base=base or (served[0] if served else None))
            except UsageError as error:
                raise NotFound(f"model {name!r:.80}: {error}") from None

    def card(self, row: AdapterRow) -> str:
        """Return the card of an adapter without its metadata, empty for one that has none."""
        with self._lock:
            return re.sub(r"\A---\n.*?\n---\n", "", self.catalog.card(row) or "", flags=re.DOTALL)

    def task(self, row: AdapterRow, options: Mapping[str, Any]) -> Task:
        """Return the task of an adapter. Raises UsageError for options that are unknown or name files."""
        with self._lock:
            plain = self.catalog.load_task(row.task, {})
            for name in plain.current_names(options):
                if name in plain.file_options():
                    raise UsageError(f"options.{name}: names files of the server: send images with the request")
            return self.catalog.load_task(row.task, dict(options)) if options else plain

    async def edit(self, request: Request) -> Response:
        """Answer `POST /v1/images/edits`: an image per input and variant."""
        asked = await _read(request)
        return await self._made(request, schema.parsed(asked.fields), asked)

    async def generate(self, request: Request) -> Response:
        """Answer `POST /v1/images/generations`, where a task can begin with nothing: an image per variant."""
        asked = await _read(request)
        wanted = schema.parsed(asked.fields)
        asked.images = [await run_in_threadpool(self._blank, wanted)]
        return await self._made(request, wanted, asked)

    def _blank(self, wanted: schema.ImagesRequest) -> bytes:
        """Return the input of a request that has none, as PNG. Raises UsageError: its task needs one."""
        row = self.resolve(wanted.model)
        width, height = wanted.pixels or BLANK
        if width * height > self.options.max_pixels:
            raise UsageError(f"size: {width}x{height} pixels are over the limit of {self.options.max_pixels}")
        blank = self.task(row, wanted.options).blank(width, height)
        if blank is None:
            raise UsageError(f"model: task {row.task} needs an image; send it to /v1/images/edits")
        return images.encoded(blank, "png")

    async def _made(self, request: Request, wanted: schema.ImagesRequest, asked: Asked) -> Response:
        """Return the answer to a request, once its images are made."""
        works = await to_thread.run_sync(self.works, wanted, asked, limiter=self.decoders)
        self.queue.submit(works)
        made = await self._results(request, works)
        kept = (lambda name: str(request.url_for("file", name=name))) if wanted.response_format == "url" else None
        return JSONResponse(await run_in_threadpool(self.document, wanted, works, made, kept))

    def check(self, wanted: schema.ImagesRequest, asked: Asked) -> tuple[AdapterRow, Task, int]:
        """Return the version, the task and the steps of a request; refuse what needs no look at its images."""
        if not asked.images:
            raise UsageError("image: at least one is needed, as a file of a form or a data URI")
        row = self.resolve(wanted.model)
        if wanted.n > 1:
            with prefixed("n"):
                check_variants(wanted.n, "ddim", 1.0, row)
        steps = wanted.num_inference_steps or row.steps
        check_steps(steps, row)
        task = self.task(row, wanted.options)
        if task.needs_prompt and not wanted.prompt.strip():
            raise UsageError(f"prompt: task {row.task} needs one")
        return row, task, steps

    def works(self, wanted: schema.ImagesRequest, asked: Asked) -> list[Work]:
        """Return what a request has to wait for; everything that can be refused is refused here."""
        row, task, steps = self.check(wanted, asked)
        limit, seed = self.options.max_pixels, secrets.randbits(63) if wanted.seed is None else wanted.seed
        mask = None if asked.mask is None else images.hole(images.read(asked.mask, limit, "mask"))
        works: list[Work] = []
        left = limit
        for number, data in enumerate(asked.images):
            image = images.read(data, left, f"image[{number}]" if len(asked.images) > 1 else "image")
            left -= image.width * image.height
            width, height = own = task.output_size(*image.size)
            size = wanted.pixels if task.size_is_free else None
            if wanted.pixels not in (None, size, own):
                raise UsageError(f"size: the result of this image has {width}x{height} pixels; ask for that, or auto")
            width, height = size or own
            if width * height > limit:
                raise UsageError(f"image: the result would have {width}x{height} pixels, over the limit of {limit}")
            first = variant_seed(seed, number * schema.MAX_VARIANTS)
            works += [
                Work(
                    row.base, row.ref, image, mask, wanted.prompt, variant_seed(first, variant), size, steps,
                    wanted.strength, wanted.options,
                )
                for variant in range(wanted.n)
            ]  # fmt: skip
        return works

    async def _results(self, request: Request, works: Sequence[Work]) -> list[Image.Image]:
        """Wait for the images of a request, as long as its client does."""
        waiting = asyncio.gather(*(asyncio.wrap_future(work.result) for work in works))
        end = time.monotonic() + self.options.max_time
        try:
            while not (await asyncio.wait([waiting], timeout=POLL))[0]:
                if await request.is_disconnected():
                    raise ClientDisconnect
                if time.monotonic() > end:
                    raise Refused(504, f"the request took over {self.options.max_time:g} seconds")
            return waiting.result()
        finally:
            waiting.cancel()

    def document(
        self,
        wanted: schema.ImagesRequest,
        works: Sequence[Work],
        made: Sequence[Image.Image],
        link: Callable[[str], str] | None,
    ) -> dict[str, Any]:
        """Return the answer with the images, or with what `link` makes of the names that they are kept under."""
        data: list[dict[str, Any]] = []
        for work, image in zip(works, made, strict=True):
            file = images.encoded(image, wanted.output_format)
            if link:
                entry = {"url": link(self.kept.add(file, wanted.output_format))}
            else:
                entry = {"b64_json": base64.b64encode(file).decode()}
            data.append(entry | {"seed": work.seed})
            self.metrics.images.labels(work.ref).inc()
        size = f"{made[0].width}x{made[0].height}"
        about = {"model": works[0].ref, "output_format": wanted.output_format, "size": size}
        return {"created": int(time.time()), "data": data} | about

    def file(self, name: str) -> Response:
        """Return an image that was answered as a link."""
        found = self.kept.get(name)
        if found is None:
            raise NotFound("no such image, or it has expired")
        return Response(found[0], media_type=found[1], headers={"Cache-Control": "private"})


def application(service: Service, batches: Batches) -> Guard:
    """Return the application, in its guard."""
    page = WebPage(service) if service.options.page else None
    login = Login(service.options.token) if service.options.token else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.queue.start()
        batches.start()
        async with page or nullcontext():
            yield

    app = FastAPIOffline(title="CoDi Hub", version=codi_hub.__version__, lifespan=lifespan)

    @app.get("/v1/models", summary="List the adapters")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": service.models()}

    @app.get("/v1/models/{name:path}", summary="Show an adapter")
    def model(name: str) -> dict[str, Any]:
        return _model(name, service.resolve(name))

    @app.post("/v1/images/edits", summary="Generate images of images", openapi_extra=schema.body(edits=True))
    async def edits(request: Request) -> Response:
        return await service.edit(request)

    @app.post("/v1/images/generations", summary="Generate images of text", openapi_extra=schema.body(edits=False))
    async def generations(request: Request) -> Response:
        return await service.generate(request)

    app.include_router(routes(batches))

    @app.get("/v1/images/files/{name}", name="file", summary="Get an image that was answered as a link")
    def file(name: str) -> Response:
        return service.file(name)

    if page and login:
        app.add_api_route(LOGIN, login.enter, methods=["POST"], include_in_schema=False)

    @app.get("/health", summary="Tell that the server lives")
    def health() -> dict[str, Any]:
        return {"status": "ok", "version": codi_hub.__version__, "waiting": service.queue.length}

    @app.get("/metrics", summary="Count requests, images and batches, for Prometheus")
    def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    if page:
        app.mount("/", page)
    if origins := service.options.origins:
        methods, headers = ["GET", "POST"], ["*"]
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=methods, allow_headers=headers)
    for kind in (CodiError, Refused, MemoryError):
        app.add_exception_handler(kind, lambda request, error: refusal(error))
    app.add_exception_handler(HTTPException, _http_refusal)
    app.add_exception_handler(ClientDisconnect, lambda request, error: Response(status_code=499))
    app.add_exception_handler(Exception, lambda request, error: refusal(error))
    return Guard(app, service.options, service.metrics, page, login)


def _http_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return answer(error.status_code, f"{request.method} {request.url.path!r:.80}: {error.detail}")


def _model(name: str, row: AdapterRow) -> dict[str, Any]:
    created = int(datetime.fromisoformat(row.created).timestamp())
    own = {"version": f"{row.base}/{row.ref}", "kind": row.kind, "method": row.method, "steps": row.steps}
    return {"id": name, "object": "model", "created": created, "owned_by": "codi-hub", **own}


async def _read(request: Request) -> Asked:
    """Read a form or a JSON document. Raises UsageError or Refused for what is neither."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return from_document(schema.json_object(await request.body()))
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        return await _from_form(request)
    raise Refused(415, f"content type {kind!r:.60}: send multipart/form-data or application/json")


def from_document(document: Mapping[str, Any]) -> Asked:
    """Read a request in JSON. Raises UsageError."""
    asked = Asked({name: value for name, value in document.items() if name not in (*IMAGE_FIELDS, "mask")})
    for name in IMAGE_FIELDS:
        given = document.get(name)
        for one in given if isinstance(given, list) else [] if given is None else [given]:
            asked.images.append(images.from_text(_text(one, name)))
    if (mask := document.get("mask")) is not None:
        asked.mask = images.from_text(_text(mask, "mask"))
    if len(asked.images) > MAX_IMAGES:
        raise UsageError(f"image: {len(asked.images)} images, and a request may have {MAX_IMAGES}")
    return asked


def _text(value: Any, name: str) -> str:
    """Return the text of an image in JSON: itself, or of {"image_url": ...}, with or without a further {"url": ...}."""
    for key in ("image_url", "url"):
        value = value.get(key) if isinstance(value, dict) else value
    if not isinstance(value, str):
        raise UsageError(f'{name}: a data URI, or {{"image_url": "data:..."}}')
    return value


async def _from_form(request: Request) -> Asked:
    asked = Asked()
    try:
        async with request.form(max_files=MAX_IMAGES + 1, max_fields=MAX_FIELDS) as form:
            for name, value in form.multi_items():
                data = await value.read() if isinstance(value, UploadFile) else None
                if name in IMAGE_FIELDS:
                    asked.images.append(images.from_text(str(value)) if data is None else data)
                elif name == "mask":
                    asked.mask = images.from_text(str(value)) if data is None else data
                elif data is None:
                    asked.fields[name] = value
    except (CodiError, HTTPException, Refused, ClientDisconnect):
        raise
    except Exception:  # noqa: BLE001 - the parser raises anything for a form that is cut off or no form
        raise UsageError("the form cannot be read") from None
    return asked
