"""Batch jobs: many requests in one document, generated beside the others' and kept until they are fetched.

A batch is a folder in the home (its requests, then a file per answer) and a run in the registry, whose items say which
requests are done: after a stop or a kill it goes on from there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from itertools import islice
from typing import Any

from filelock import FileLock, Timeout

from codi_hub.errors import CodiError, NotFound, UsageError, describe, prefixed
from codi_hub.registry import RunRow
from codi_hub.serve import schema
from codi_hub.serve.api import Service, from_document
from codi_hub.serve.batch_store import CANCELLED, DONE, ENDPOINT, RUNNING, BatchStore, Line, document
from codi_hub.serve.guard import refusal
from codi_hub.serve.queue import BATCH, QueueFull, Stopping, Work

log = logging.getLogger(__name__)

MAX_REQUESTS = 10_000
LOCK = ".lock"
RETRY = 5.0  # seconds between two looks for work, and after a fault such as a full disk
PAUSE = 0.2  # seconds between two tries to enter a full queue

Begun = tuple[Line, schema.ImagesRequest | None, Sequence[Work] | CodiError]


class Batches:
    """The batches of a home, and a thread that works on them in turn.

    Args:
        service: generates; its queue is shared with other requests. Of a batch no more than `BATCH` images wait, or
            those of one request.
        store: what is kept of them.
    """

    def __init__(self, service: Service, store: BatchStore) -> None:
        self.service, self.store = service, store
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

    @property
    def stopping(self) -> bool:
        """Whether the server stops."""
        return self._stopping

    def create(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Check and keep a batch; return it as OpenAI's client reads it.

        Args:
            asked: `requests`, each with `body` and perhaps `custom_id`, or `input_file_id` of such lines that were sent
                before; `metadata`.

        Raises:
            UsageError: a request that could never be generated, by its number. QueueFull: no room for another batch.
        """
        name = asked.get("input_file_id")
        lines = self._checked(asked.get("requests") if name is None else self.store.uploaded(name))
        metadata = asked.get("metadata") or {}
        texts = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
        if not texts or len(json.dumps(metadata)) > 16_000:
            raise UsageError("metadata: an object of short texts")
        name = self.store.add(lines, metadata)
        with self._wake:
            self._wake.notify_all()
        return self.get(name)

    def get(self, name: str) -> dict[str, Any]:
        """Return a batch as OpenAI's client reads it. Raises NotFound."""
        return document(self.store.row(name))

    def all(self) -> list[dict[str, Any]]:
        """Return all batches, newest first."""
        return [*map(document, self.store.rows())]

    def cancel(self, name: str) -> dict[str, Any]:
        """End a batch; the answers that there are stay. Raises NotFound."""
        self.store.end(name, CANCELLED)
        return self.get(name)

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

    def _run(self) -> None:
        while not self._stopping:
            worked = False
            rows = self.store.rows()
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
            lock = FileLock(self.store.folder / name / LOCK, timeout=0)
            with contextlib.suppress(Timeout, OSError):
                lock.acquire()
                self._held[name] = lock
                self._left[name] = self.store.left(row)
        return name in self._held

    def _release(self, name: str) -> None:
        self._left.pop(name, None)
        self._held.pop(name).release()

    def _advance(self, row: RunRow) -> bool:
        """Generate the next requests of a batch, as many as share a batch of the networks; False if it has ended."""
        name = row.options["batch"]
        lines = [*islice(self._left[name], BATCH)]
        if not lines:
            self.store.end(name, DONE)
            self._release(name)
            return False
        part: list[Begun] = []
        for line in lines:
            if self.store.is_answered(row, line):  # a kill came before it was recorded
                self.store.record(row, line, 0.0)
            else:
                part.append((line, *self._works(line)))
            if sum(len(works) for *_, works in part if not isinstance(works, CodiError)) >= BATCH:
                self._generate(row, part)
                part = []
        self._generate(row, part)
        return not self._stopping

    def _generate(self, row: RunRow, part: Sequence[Begun]) -> None:
        """Generate some requests together, and keep their answers."""
        begun = time.perf_counter()
        for _, _, works in part:
            if not isinstance(works, CodiError):
                self._submit(row, works)
        for line, wanted, works in part:
            if self._finish(row, line, wanted, works):
                self.store.record(row, line, (time.perf_counter() - begun) / len(part))

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
                if self._stopping or self.store.row(row.options["batch"]).status != RUNNING:
                    break
            except Stopping:
                break
        for work in works:
            work.result.cancel()

    def _finish(
        self, row: RunRow, line: Line, wanted: schema.ImagesRequest | None, works: Sequence[Work] | CodiError
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
        self.store.answer(row, line, status, body)
        return True
