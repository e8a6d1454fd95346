"""Listing, planning and resuming of many names in an object store, without networks.

python -m benchmarks.store_names --names 1000000

A server of its own process answers as S3 does, page by page, with names and ETags that it makes up: the store itself
takes no time. Another process plans them, then resumes a run that made them all.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlsplit

from benchmarks.scaling import PER_FOLDER, _home, _peak
from codi_hub import Catalog, RunOptions
from codi_hub.folders.conditions import with_objects
from codi_hub.folders.making import RunSettings
from codi_hub.folders.plan import Item, plan
from codi_hub.folders.rows import RegistryLog
from codi_hub.folders.runner import FolderRun
from codi_hub.objects import listed_once, listing, version
from codi_hub.urls import UrlPath

PAGE = 1000  # names, as S3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", type=int, default=1_000_000)
    count = parser.parse_args().names
    server = HTTPServer(("127.0.0.1", 0), partial(_Pages, count))
    os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"}
    process = multiprocessing.Process(target=server.serve_forever, daemon=True)
    process.start()
    try:
        measure(count)
    finally:
        process.kill()


def measure(count: int) -> None:
    from codi_hub.tasks.superres import SuperRes

    task, out = SuperRes(), UrlPath("s3://bucket/out")
    with _home(), Catalog.open() as catalog:
        before, cpu, start = _peak(), time.process_time(), time.perf_counter()
        with listed_once():
            items = plan([UrlPath("s3://bucket/in")], task, RunOptions(out=out), origins=catalog.registry.runs.origins)
            items = with_objects(items, [task])
        assert len(items) == count
        print(f"listing and plan of {count:,}: {_since(cpu, start)}, {_peak() - before:,} MB more", flush=True)
        row = catalog.registry.adapters.resolve("superres")
        _record(catalog, items, row.task, row.ref)
        log = RegistryLog(catalog.registry.runs, row, {}, items)
        settings = RunSettings(task=row.task, adapter=row.ref, steps=1, options=RunOptions(out=out, dry_run=True))
        cpu, start = time.process_time(), time.perf_counter()
        report = FolderRun(items, task, lambda: None, settings, log=log).run()  # type: ignore[arg-type,return-value]
        assert report.skipped == count
        print(f"resume of {report.skipped:,} finished: {_since(cpu, start)}, peak {_peak():,} MB")


def _since(cpu: float, start: float) -> str:
    return f"{time.process_time() - cpu:.1f} s CPU, {time.perf_counter() - start:.1f} s"


def _record(catalog: Catalog, items: list[Item], task: str, ref: str) -> None:
    """Record all items as made."""
    from codi_hub.registry.models import run_item

    run_id, rows = catalog.registry.runs.start(task, ref, {}), []
    with listed_once():
        listing(UrlPath("s3://bucket/out"))
        for item in items:
            row = {"run_id": run_id, "input": item.input_file, "output": item.output_file, "input_hash": "0" * 64}
            row |= {"status": "ok", "seed": item.seed, "seconds": 1.0, "input_stamp": item.stamp}
            written = {"output_hash": "1" * 64, "output_bytes": 1000, "output_mtime_ns": version(item.output)}
            rows.append(row | written)
            if len(rows) == 10_000 or item is items[-1]:
                with catalog.registry.runs._database.write() as connection:
                    connection.execute(run_item.insert(), rows)
                rows.clear()


class _Pages(BaseHTTPRequestHandler):
    """Answers `list_objects_v2` of the folders in/ and out/."""

    protocol_version = "HTTP/1.1"

    def __init__(self, count: int, *args: object) -> None:
        self.count = count
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        start = int(query.get("continuation-token", ["0"])[0])
        end = min(start + PAGE, self.count)
        prefix = query["prefix"][0]
        entries = "".join(_entry(prefix, k) for k in range(start, end))
        more = "" if end == self.count else f"<NextContinuationToken>{end}</NextContinuationToken>"
        state = f"<KeyCount>{end - start}</KeyCount><IsTruncated>{str(bool(more)).lower()}</IsTruncated>"
        body = f"<ListBucketResult>{entries}{more}{state}</ListBucketResult>".encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


def _entry(prefix: str, k: int) -> str:
    return (
        f"<Contents><Key>{prefix}{k // PER_FOLDER:04}/{k:07}.png</Key><LastModified>2026-12-01T00:00:00.000Z"
        f"</LastModified><ETag>&quot;{k:032x}&quot;</ETag><Size>1000</Size><StorageClass>STANDARD</StorageClass></Contents>"
    )


if __name__ == "__main__":
    main()
