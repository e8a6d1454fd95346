"""What is kept of batches: a folder each in the home, a run each in the registry, and files of requests."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from codi_hub import jsonl
from codi_hub.catalog import Catalog
from codi_hub.errors import InvalidInput, NotFound, UsageError
from codi_hub.images.io import atomic_file
from codi_hub.registry import RunRow
from codi_hub.registry.runs import RunLog
from codi_hub.serve.queue import QueueFull

ENDPOINT = "/v1/images/edits"
TASK = "serve"  # of its run in the registry
RUNNING, DONE, CANCELLED = "running", "ok", "cancelled"  # status of the run
STATUS = {RUNNING: "in_progress", DONE: "completed", CANCELLED: "cancelled"}  # OpenAI's names
MAX_BATCHES = 100  # that are kept; the oldest that is finished goes first
MAX_STORED = 10 << 30  # bytes of all batches
MAX_FILES = 20  # of requests, that were sent before their batches
REQUESTS, FILES = "requests.jsonl", "files"
OUTPUT = "-output"  # ends the name of the answers as one of OpenAI's files


@dataclass(frozen=True)
class Line:
    """A request of a batch: its place from 0, the caller's name for it, and its fields with version and seed fixed."""

    number: int
    custom_id: str
    body: dict[str, Any]
    sha256: str

    def as_json(self) -> str:
        return json.dumps({"custom_id": self.custom_id, "body": self.body, "sha256": self.sha256})


class BatchStore:
    """The batches of a home; safe to use from several threads.

    Args:
        home: state folder; None: the default.
    """

    def __init__(self, home: Path | None = None) -> None:
        self._catalog = Catalog.open(home)
        self.folder = self._catalog.registry.home / "batches"
        self._lock = threading.Lock()  # of the catalog
        self._runs_of: dict[str, int] = {}  # name of a batch -> its run

    def close(self) -> None:
        """Close the registry."""
        self._catalog.close()

    @property
    def _runs(self) -> RunLog:
        return self._catalog.registry.runs

    def rows(self) -> list[RunRow]:
        """Return the runs of the batches that are kept, newest first."""
        with self._lock:
            runs = self._runs.list(None, TASK)
        known = {folder.name for folder in self.folder.glob("batch_*")}
        rows = [row for row in runs if row.options.get("batch") in known]
        self._runs_of = {row.options["batch"]: row.id for row in rows}
        return rows

    def row(self, name: str) -> RunRow:
        """Return the run of a batch. Raises NotFound."""
        if name not in self._runs_of:
            self.rows()
        if name not in self._runs_of or not (self.folder / name).is_dir():
            raise NotFound(f"batch {name!r:.60}: there is none of that name, or it was removed for newer ones")
        with self._lock:
            return self._runs.get(self._runs_of[name])

    def add(self, lines: Sequence[Line], metadata: Mapping[str, str]) -> str:
        """Keep a batch; return its name. Raises QueueFull: no room for another."""
        self._make_room()
        name = f"batch_{secrets.token_hex(12)}"
        folder = self.folder / name
        folder.mkdir(parents=True)
        with atomic_file(folder / REQUESTS) as file:
            file.writelines(f"{line.as_json()}\n".encode() for line in lines)
        models = sorted({line.body["model"] for line in lines})
        options = {"batch": name, "total": len(lines), "metadata": metadata}
        with self._lock:
            self._runs.start(TASK, ", ".join(models)[:160], options)
        return name

    def end(self, name: str, status: str) -> None:
        """Set the status of a batch that has not ended. Raises NotFound."""
        row = self.row(name)
        if row.status == RUNNING:
            with self._lock:
                self._runs.finish(row.id, status)

    def left(self, row: RunRow) -> Iterator[Line]:
        """Return the requests of a batch that are not done."""
        with self._lock:
            done = {item.input for item in self._runs.items(row.id)}
        lines = _lines(self.folder / row.options["batch"] / REQUESTS)
        return (line for line in lines if line.custom_id not in done)

    def is_answered(self, row: RunRow, line: Line) -> bool:
        """Return whether the answer of a request is written."""
        return self._answer(row, line).exists()

    def answer(self, row: RunRow, line: Line, status: int, body: Mapping[str, Any]) -> None:
        """Write the answer of a request, in the form of OpenAI's output files. Raises OSError."""
        name = f"{row.options['batch']}-{line.number}"
        response = {"status_code": status, "request_id": name, "body": body}
        answer = {"id": name, "custom_id": line.custom_id, "response": response, "error": None}
        with atomic_file(self._answer(row, line)) as file:
            file.write(json.dumps(answer).encode())

    def record(self, row: RunRow, line: Line, seconds: float) -> None:
        """Add a request whose answer is written to the run's items."""
        path = self._answer(row, line)
        data = path.read_bytes()
        response = json.loads(data)["response"]
        failed = response["status_code"] != 200
        with self._lock:
            self._runs.add_item(
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

    def results(self, name: str) -> Iterator[bytes]:
        """Return the answers so far, a line of JSON each in the form of OpenAI's output files. Raises NotFound."""
        folder = self.folder / self.row(name.removesuffix(OUTPUT)).options["batch"]
        return (file.read_bytes() + b"\n" for file in sorted(folder.glob("*.json")))

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

    def uploaded(self, name: Any) -> list[dict[str, Any]]:
        """Return the requests of a file that was sent before. Raises NotFound or UsageError."""
        file = self.folder / FILES / f"{name}.jsonl"
        if not re.fullmatch(r"file-[0-9a-f]{24}", str(name)) or not file.exists():
            raise NotFound(f"input_file_id {name!r:.60}: there is no such file, or it was removed for newer ones")
        try:
            return [entry for _, entry in jsonl.objects(file)]
        except InvalidInput as error:
            raise UsageError(f"input_file_id: {str(error).removeprefix(f'{file} ')}") from None

    def _make_room(self) -> None:
        """Remove finished batches until another fits. Raises QueueFull."""
        rows = self.rows()
        sizes = {row.id: _size(self.folder / row.options["batch"]) for row in rows}
        while len(rows) >= MAX_BATCHES or sum(sizes[row.id] for row in rows) > MAX_STORED:
            oldest = next((row for row in reversed(rows) if row.status != RUNNING), None)
            if oldest is None:
                raise QueueFull(f"{len(rows)} batches are not finished, and no more are kept: try again later")
            shutil.rmtree(self.folder / oldest.options["batch"], ignore_errors=True)
            rows.remove(oldest)

    def _answer(self, row: RunRow, line: Line) -> Path:
        return self.folder / row.options["batch"] / f"{line.number:06d}.json"


def document(row: RunRow) -> dict[str, Any]:
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


def _seconds(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp())


def _size(folder: Path) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(folder) if entry.is_file())
