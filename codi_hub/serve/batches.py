"""Batch jobs: many requests in one document, generated beside the others' and kept until they are fetched.

A batch is a folder in the home (its requests, then a file per answer) and a run in the registry, whose items say which
requests are done: after a stop or a kill it goes on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from codi_hub import jsonl
from codi_hub.catalog import Catalog
from codi_hub.errors import CodiError, InvalidInput, NotFound, UsageError, describe, prefixed
from codi_hub.images.io import atomic_file
from codi_hub.registry import RunRow
from codi_hub.serve import schema
from codi_hub.serve.api import Service, from_document
from codi_hub.serve.guard import refusal
from codi_hub.serve.queue import BATCH, QueueFull, Stopping, Work

log = logging.getLogger(__name__)

ENDPOINT = "/v1/images/edits"
TASK = "serve"  # of its run in the registry
RUNNING, DONE, CANCELLED = "running", "ok", "cancelled"  # status of the run
STATUS = {RUNNING: "in_progress", DONE: "completed", CANCELLED: "cancelled"}  # OpenAI's names
MAX_REQUESTS = 10_000
MAX_BATCHES = 100  # that are kept; the oldest that is finished goes first
MAX_STORED = 10 << 30  # bytes of all batches
MAX_FILES = 20  # of requests, that were sent before their batches
REQUESTS, LOCK, FILES = "requests.jsonl", ".lock", "files"
OUTPUT = "-output"  # ends the name of the answers as one of OpenAI's files
RETRY = 5.0  # seconds between two looks for work, and after a fault such as a full disk
PAUSE = 0.2  # seconds between two tries to enter a full queue


@dataclass(frozen=True)
class Line:
    """A request of a batch: its place from 0, the caller's name for it, and its fields with version and seed fixed."""

    number: int
    custom_id: str
    body: dict[str, Any]
    sha256: str

    def as_json(self) -> str:
        return json.dumps({"custom_id": self.custom_id, "body": self.body, "sha256": self.sha256})


Begun = tuple[Line, schema.ImagesRequest | None, Sequence[Work] | CodiError]


class Batches:
    """The batches of a home, and a thread that works on them in turn.

    Args:
        service: generates; its queue is shared with other requests. Of a batch no more than `BATCH` images wait, or
            those of one request.
        home: state folder; None: the default.
    """

    def __init__(self, service: Service, home: Path | None = None) -> None:
        self.service = service
        self._catalog = Catalog.open(home)
        self.folder = self._catalog.registry.home / "batches"
        self._lock = threading.Lock()  # of the catalog
        self._wake = threading.Condition()
        self._stopping = False
        self._held: dict[str, FileLock] = {}  # batches that this process works on
        self._left: dict[str, Iterator[Line]] = {}  # their requests that are not done
        self._thread = threading.Thread(target=self._run, name="codi-batches", daemon=True)

    def start(self) -> None:
        """Go on with the batches that were not finished."""
        self._thread.start()

    def begin_stop(self) -> None:
        """Begin no further request; what is not done is for the next start."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()

    def stop(self) -> None:
        """Wait for the thread, once the queue has been stopped too."""
        self.begin_stop()
        if self._thread.is_alive():
            self._thread.join()

    def close(self) -> None:
        """Close the registry."""
        self._catalog.close()

    @property
    def stopping(self) -> bool:
        """Whether the server stops."""
        return self._stopping

    # ---- what clients ask for

    def create(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Check and keep a batch; return it as OpenAI's client reads it.

        Args:
            document: `requests`, each with `body` and perhaps `custom_id`, or `input_file_id` of such lines that were
                sent before; `metadata`.

        Raises:
            UsageError: a request that could never be generated, by its number. QueueFull: no room for another batch.
        """
        name = document.get("input_file_id")
        lines = self._checked(document.get("requests") if name is None else self._uploaded(name))
        metadata = document.get("metadata") or {}
        texts = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
        if not texts or len(json.dumps(metadata)) > 16_000:
            raise UsageError("metadata: an object of short texts")
        self._make_room()
        name = f"batch_{secrets.token_hex(12)}"
        folder = self.folder / name
        folder.mkdir(parents=True)
        with atomic_file(folder / REQUESTS) as file:
            file.writelines(f"{line.as_json()}\n".encode() for line in lines)
        models = sorted({line.body["model"] for line in lines})
        options = {"batch": name, "total": len(lines), "metadata": metadata}
        with self._lock:
            self._catalog.registry.runs.start(TASK, ", ".join(models)[:160], options)
        with self._wake:
            self._wake.notify_all()
        return self.get(name)

    def get(self, name: str) -> dict[str, Any]:
        """Return a batch as OpenAI's client reads it. Raises NotFound."""
        return _document(self._row(name))

    def all(self) -> list[dict[str, Any]]:
        """Return all batches, newest first."""
        return [_document(row) for row in self._rows()]

    def cancel(self, name: str) -> dict[str, Any]:
        """End a batch; the answers that there are stay. Raises NotFound."""
        row = self._row(name)
        if row.status == RUNNING:
            with self._lock:
                self._catalog.registry.runs.finish(row.id, CANCELLED)
        return self.get(name)

    def upload(self, data: bytes) -> dict[str, Any]:
        """Keep a file of requests, a line of JSON each; return it as OpenAI's client reads it. Raises UsageError."""
        if not data.strip():
            raise UsageError("file: it is empty; a batch has a line of JSON for each request")
        folder = self.folder / FILES
        folder.mkdir(parents=True, exist_ok=True)
        for old in sorted(folder.glob("*.jsonl"), key=lambda file: file.stat().st_mtime)[: -MAX_FILES + 1]:
            old.unlink(missing_ok=True)
        name = f"file-{secrets.token_hex(12)}"
        with atomic_file(folder / f"{name}.jsonl") as file:
            file.write(data)
        about = {"filename": f"{name}.jsonl", "purpose": "batch", "status": "processed", "created_at": int(time.time())}
        return {"id": name, "object": "file", "bytes": len(data)} | about

    def _uploaded(self, name: Any) -> list[dict[str, Any]]:
        """Return the requests of a file that was sent before. Raises NotFound or InvalidInput."""
        file = self.folder / FILES / f"{name}.jsonl"
        if not re.fullmatch(r"file-[0-9a-f]{24}", str(name)) or not file.exists():
            raise NotFound(f"input_file_id {name!r:.60}: there is no such file, or it was removed for newer ones")
        try:
            return [entry for _, entry in jsonl.objects(file)]
        except InvalidInput as error:
            raise UsageError(f"input_file_id: {str(error).removeprefix(f'{file} ')}") from None

    def results(self, name: str) -> Iterator[bytes]:
        """Return the answers so far, a line of JSON each in the form of OpenAI's output files. Raises NotFound."""
        files = self.folder / self._row(name.removesuffix(OUTPUT)).options["batch"]
        return (file.read_bytes() + b"\n" for file in sorted(files.glob("*.json")))

    # ---- keeping

    def _rows(self) -> list[RunRow]:
        with self._lock:
            runs = self._catalog.registry.runs.list(None)
        known = {folder.name for folder in self.folder.glob("batch_*")}
        return [row for row in runs if row.task == TASK and row.options.get("batch") in known]

    def _row(self, name: str) -> RunRow:
        for row in self._rows():
            if row.options["batch"] == name:
                return row
        raise NotFound(f"batch {name!r:.60}: there is none of that name, or it was removed for newer ones")

    def _checked(self, requests: Any) -> Sequence[Line]:
        if not isinstance(requests, list) or not requests or len(requests) > MAX_REQUESTS:
            raise UsageError(f"requests: a list of 1 to {MAX_REQUESTS} requests")
        lines: list[Line] = []
        names = set[str]()
        for number, entry in enumerate(requests):
            with prefixed(f"requests[{number}]"):
                entry = entry if isinstance(entry, dict) else {}
                if entry.get("url", ENDPOINT) != ENDPOINT or not isinstance(entry.get("body"), dict):
                    raise UsageError(f'{{"custom_id": ..., "body": {{...}}}}, for {ENDPOINT}')
                custom = entry.get("custom_id", str(number))
                if not isinstance(custom, str) or not custom or len(custom) > 200 or custom in names:
                    raise UsageError("custom_id: a text of up to 200 characters that no other request has")
                names.add(custom)
                lines.append(self._fixed(number, custom, entry["body"]))
        return lines

    def _fixed(self, number: int, custom: str, body: dict[str, Any]) -> Line:
        """Return a request that stays what it is: a version in place of a tag, and a seed."""
        asked = from_document(body)
        wanted = schema.parsed(asked.fields)
        if wanted.response_format == "url":
            raise UsageError("response_format url: links expire before a batch is fetched; use b64_json")
        self.service.check(wanted, asked)
        if (count := len(asked.images) * wanted.n) > (most := self.service.options.max_queue):
            raise UsageError(f"n: {count} images, and {most} may wait: make several requests of it")
        row, prefix = self.service.resolve(wanted.model), wanted.model.rpartition("/")
        seed = secrets.randbits(63) if wanted.seed is None else wanted.seed
        return Line(number, custom, body | {"model": "".join((*prefix[:2], row.ref)), "seed": seed}, row.sha256)

    def _make_room(self) -> None:
        """Remove finished batches until another fits. Raises QueueFull."""
        rows = self._rows()
        sizes = {row.id: _size(self.folder / row.options["batch"]) for row in rows}
        while len(rows) >= MAX_BATCHES or sum(sizes[row.id] for row in rows) > MAX_STORED:
            oldest = next((row for row in reversed(rows) if row.status != RUNNING), None)
            if oldest is None:
                raise QueueFull(f"{len(rows)} batches are not finished, and no more are kept: try again later")
            shutil.rmtree(self.folder / oldest.options["batch"], ignore_errors=True)
            rows.remove(oldest)

    # ---- working

    def _run(self) -> None:
        while not self._stopping:
            worked = False
            rows = self._rows()
            for name in self._held.keys() - {row.options["batch"] for row in rows if row.status == RUNNING}:
                self._release(name)
            for row in reversed(rows):
                if row.status == RUNNING and not self._stopping and self._holds(row):
                    try:
                        worked |= self._advance(row)
                    except Exception as error:  # noqa: BLE001 - the other batches go on
                        log.error("batch %s: %s", row.options["batch"], describe(error))
                        self._release(row.options["batch"])  # what has no answer is read again
            with self._wake:
                if not worked and not self._stopping:
                    self._wake.wait(RETRY)
        for name in [*self._held]:
            self._release(name)

    def _holds(self, row: RunRow) -> bool:
        """Return whether this process, and no other server of the home, works on a batch."""
        name = row.options["batch"]
        if name not in self._held:
            lock = FileLock(self.folder / name / LOCK, timeout=0)
            with contextlib.suppress(Timeout, OSError):
                lock.acquire()
                self._held[name] = lock
                with self._lock:
                    done = {item.input for item in self._catalog.registry.runs.items(row.id)}
                lines = _lines(self.folder / name / REQUESTS)
                self._left[name] = (line for line in lines if line.custom_id not in done)
        return name in self._held

    def _release(self, name: str) -> None:
        self._left.pop(name, None)
        self._held.pop(name).release()

    def _advance(self, row: RunRow) -> bool:
        """Generate the next requests of a batch, as many as share a batch of the networks; False if it has ended."""
        folder = self.folder / row.options["batch"]
        lines = [*islice(self._left[row.options["batch"]], BATCH)]
        if not lines:
            if self._row(row.options["batch"]).status == RUNNING:
                with self._lock:
                    self._catalog.registry.runs.finish(row.id, DONE)
            self._release(row.options["batch"])
            return False
        part: list[Begun] = []
        for line in lines:
            if (folder / _file(line)).exists():  # a kill came before it was recorded
                self._record(row, line, 0.0)
            else:
                part.append((line, *self._works(line)))
            if sum(len(works) for *_, works in part if not isinstance(works, CodiError)) >= BATCH:
                self._generate(row, part)
                part = []
        self._generate(row, part)
        return not self._stopping

    def _generate(self, row: RunRow, part: Sequence[Begun]) -> None:
        """Generate some requests together, and keep their answers."""
        begun, folder = time.perf_counter(), self.folder / row.options["batch"]
        for _, _, works in part:
            if not isinstance(works, CodiError):
                self._submit(row, works)
        for line, wanted, works in part:
            if self._finish(folder, line, wanted, works):
                self._record(row, line, (time.perf_counter() - begun) / len(part))

    def _works(self, line: Line) -> tuple[schema.ImagesRequest | None, Sequence[Work] | CodiError]:
        try:
            asked = from_document(line.body)
            wanted = schema.parsed(asked.fields)
            if self.service.resolve(wanted.model).sha256 != line.sha256:
                raise NotFound(f"model {wanted.model!r:.80}: it is not the version any more that the batch began with")
            return wanted, self.service.works(wanted, asked)
        except CodiError as error:
            return None, error

    def _submit(self, row: RunRow, works: Sequence[Work]) -> None:
        """Let a request's images wait for their turn, as soon as there is room and unless the batch is cancelled."""
        while True:
            try:
                self.service.queue.submit(works)
                return
            except QueueFull:
                with self._wake:
                    if not self._stopping:
                        self._wake.wait(PAUSE)
                if self._stopping or self._row(row.options["batch"]).status != RUNNING:
                    break
            except Stopping:
                break
        for work in works:
            work.result.cancel()

    def _finish(
        self, folder: Path, line: Line, wanted: schema.ImagesRequest | None, works: Sequence[Work] | CodiError
    ) -> bool:
        """Write the answer of a request; False where the server stopped before there was one."""
        try:
            if isinstance(works, CodiError):
                raise works
            assert wanted is not None
            images = [work.result.result() for work in works]
            body, status = self.service.document(wanted, works, images, None), 200
        except (Stopping, CancelledError):
            return False
        except Exception as error:  # noqa: BLE001 - whatever it is, the request's answer says so
            refused = refusal(error)
            body, status = json.loads(bytes(refused.body)), refused.status_code
        name = f"{folder.name}-{line.number}"
        response = {"status_code": status, "request_id": name, "body": body}
        answer = {"id": name, "custom_id": line.custom_id, "response": response, "error": None}
        with atomic_file(folder / _file(line)) as file:
            file.write(json.dumps(answer).encode())
        return True

    def _record(self, row: RunRow, line: Line, seconds: float) -> None:
        """Add a request whose answer is written to the run's items."""
        path = self.folder / row.options["batch"] / _file(line)
        data = path.read_bytes()
        response = json.loads(data)["response"]
        failed = response["status_code"] != 200
        with self._lock:
            self._catalog.registry.runs.add_item(
                row.id,
                input=line.custom_id,
                output=str(path),
                input_hash=None,
                status="failed" if failed else "ok",
                seed=line.body["seed"],
                error=response["body"]["error"]["message"] if failed else None,
                seconds=seconds,
                prompt=line.body.get("prompt") or None,
                output_hash=hashlib.sha256(data).hexdigest(),
                output_bytes=len(data),
                output_mtime_ns=path.stat().st_mtime_ns,
            )


def _document(row: RunRow) -> dict[str, Any]:
    """Return a batch in OpenAI's form."""
    ended = row.finished and _seconds(row.finished)
    counts = {"total": row.options["total"], "completed": row.ok, "failed": row.failed}
    return {
        "id": row.options["batch"],
        "object": "batch",
        "endpoint": ENDPOINT,
        "input_file_id": "",
        "completion_window": "24h",
        "status": STATUS.get(row.status, row.status),
        "created_at": _seconds(row.started),
        "output_file_id": row.options["batch"] + OUTPUT if row.finished else None,
        "completed_at": ended if row.status == DONE else None,
        "cancelled_at": ended if row.status == CANCELLED else None,
        "request_counts": counts,
        "metadata": row.options["metadata"],
    }


def _lines(file: Path) -> Iterator[Line]:
    with file.open(encoding="utf-8") as lines:
        for number, text in enumerate(lines):
            yield Line(number, **json.loads(text))


def _file(line: Line) -> str:
    return f"{line.number:06d}.json"


def _seconds(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp())


def _size(folder: Path) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(folder) if entry.is_file())
