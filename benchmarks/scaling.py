"""Runs past one process: shards and Ray against one process, planning and resuming of many names, cost on paper.

python -m benchmarks.scaling runs --images 1000
python -m benchmarks.scaling names --names 1000000
python -m benchmarks.scaling registry
python -m benchmarks.scaling cost
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.cost import Figures, table
from codi_hub import Catalog, RunOptions
from codi_hub.folders.outputs import examine
from codi_hub.folders.plan import Item, plan
from codi_hub.folders.rows import RegistryLog
from codi_hub.registry.store import Stamp

SIDE, STEPS = 32, 4
PER_FOLDER = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    runs = parts.add_parser("runs", help="one process, two shards, two devices, two Ray actors")
    runs.add_argument("--images", type=int, default=1000)
    names = parts.add_parser("names", help="planning and resuming, without networks")
    names.add_argument("--names", type=int, default=1_000_000)
    registry = parts.add_parser("registry", help="rows per second and bytes per row of the run log")
    registry.add_argument("--rows", type=int, default=2000)
    registry.add_argument("--workers", type=int, default=8, help="processes that write at once")
    cost = parts.add_parser("cost", help="1 M and 1 B images on 1, 8 and 1,000 devices")
    for name, default in vars(Figures()).items():
        cost.add_argument(f"--{name.replace('_', '-')}", type=float, default=default)
    given = vars(parser.parse_args())
    part = given.pop("part")
    if part == "cost":
        print(table(Figures(**given)))
    else:
        {"runs": measure_runs, "names": measure_names, "registry": measure_registry}[part](*given.values())


# ---- runs


def measure_runs(count: int) -> None:
    """Run the commands on the same images, one thread per process, and compare the files."""
    with _home() as folder:
        for k in range(count):
            pixels = np.random.default_rng(k).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(_made(folder / "in") / f"{k:06}.png")
        ways = {
            "one process": [[]],
            "two shards": [["--shard", "1/2"], ["--shard", "2/2"]],
            "two devices": [["--devices", "cpu,cpu"]],
            "two Ray actors": [["--ray", "local", "--devices", "cpu,cpu"]],
        }
        seconds: dict[str, float] = {}
        for way, commands in ways.items():
            cpu = _cpu_of_children()
            seconds[way] = _timed(folder, folder / way.replace(" ", "_"), commands)
            cpu = _cpu_of_children() - cpu
            same = _contents(folder / way.replace(" ", "_")) == _contents(folder / "one_process")
            ratio = seconds["one process"] / seconds[way]
            rate = f"{count / seconds[way]:.2f} images/s, x{ratio:.2f}"
            print(f"{way}: {seconds[way]:.1f} s, {rate}, {cpu:.0f} s CPU, same files: {same}", flush=True)
        print(f"Ray over two shards: {100 * (seconds['two Ray actors'] / seconds['two shards'] - 1):.0f} %")


def _timed(folder: Path, out: Path, commands: list[list[str]]) -> float:
    start = time.perf_counter()
    base = [sys.executable, "-m", "codi_hub.cli", "run", "superres", str(folder / "in"), "-o", str(out), "-q"]
    base += ["--batch", "1", "--steps", str(STEPS), "--device", "cpu"]
    running = [subprocess.Popen([*base, *command], stdout=subprocess.DEVNULL) for command in commands]
    codes = [one.wait() for one in running]
    if any(codes):
        raise SystemExit("a run failed")
    return time.perf_counter() - start


def _cpu_of_children() -> float:
    """Return the seconds of CPU of processes that have ended, Ray's excepted: they count on a busy machine."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- names


def measure_names(count: int) -> None:
    """Plan a folder of empty files; then decide about outputs that a recorded run has made, by size and time."""
    from codi_hub.tasks.superres import SuperRes

    with _home() as folder, Catalog.open() as catalog:
        for k in range(count):
            part = folder / "in" / f"{k // PER_FOLDER:04}"
            (_made(part) if k % PER_FOLDER == 0 else part).joinpath(f"{k:07}.png").touch()
        before = _peak()
        cpu, start = time.process_time(), time.perf_counter()
        options = RunOptions(out=folder / "out")
        items = plan([folder / "in"], SuperRes(), options, origins=catalog.registry.runs.origins)
        wall = time.perf_counter() - start
        print(f"plan of {count:,}: {time.process_time() - cpu:.1f} s CPU, {wall:.1f} s, {_peak() - before:,} MB more")
        _resume(catalog, items)


def _resume(catalog: Catalog, items: list[Item]) -> None:
    row = catalog.registry.adapters.resolve("superres")
    _record(catalog, items, row.task, row.ref)
    log = RegistryLog(catalog.registry.runs, row, {}, items)
    cpu, start = time.process_time(), time.perf_counter()
    finished = sum(examine(item, "0" * 64, log, verify=False).finished for item in items)
    wall = time.perf_counter() - start
    print(f"look-up of {finished:,} finished: {time.process_time() - cpu:.1f} s CPU, {wall:.1f} s, peak {_peak():,} MB")


def _record(catalog: Catalog, items: list[Item], task: str, ref: str) -> None:
    """Write outputs of one byte, and their rows in one transaction."""
    from codi_hub.registry.models import run_item

    run_id, rows = catalog.registry.runs.start(task, ref, {}), []
    for item in items:
        _made(item.output.parent)
        item.output.write_bytes(b"x")
        stamp = Stamp.of(item.output)
        written = {"output_hash": "1" * 64, "output_bytes": stamp.bytes, "output_mtime_ns": stamp.mtime_ns}
        row = {"run_id": run_id, "input": str(item.input), "output": str(item.output), "input_hash": "0" * 64}
        rows.append(row | {"status": "ok", "seed": item.seed, "seconds": 1.0} | written)
    with catalog.registry.runs._database.write() as connection:
        connection.execute(run_item.insert(), rows)


# ---- registry


def measure_registry(count: int, workers: int) -> None:
    """Record outputs one by one, as runs do, and weigh the database where it is SQLite."""
    with _home() as folder, ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        list(pool.map(_write, [1] * workers, range(workers)))  # all have started
        before = _size(folder / "home")
        each = count // workers
        start = time.perf_counter()
        list(pool.map(_write, [each] * workers, range(workers)))
        seconds = time.perf_counter() - start
        bytes_each = (_size(folder / "home") - before) / (each * workers)
        print(f"registry: {each * workers / seconds:,.0f} rows/s by {workers} writers, {bytes_each:,.0f} bytes per row")


def _write(count: int, worker: int) -> None:
    """Record outputs of a run of its own."""
    with Catalog.open() as catalog:
        runs = catalog.registry.runs
        run_id = runs.start("superres", "superres:1", {})
        for k in range(count):
            names = {"input": f"/data/images/{worker}/{k:07}.png", "output": f"/out/{worker}/{k:07}.png"}
            hashes = {"input_hash": f"{k:064x}", "output_hash": f"{k:064x}"}
            values = {"status": "ok", "seed": k, "error": None, "seconds": 1.0}
            runs.add_item(run_id, **names, **hashes, **values, output_bytes=1, output_mtime_ns=k)


def _size(home: Path) -> int:
    return sum(path.stat().st_size for path in home.glob("registry.db*"))


def _peak() -> int:
    """Return the peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _home() -> Iterator[Path]:
    """Yield a temporary folder, with a home of its own in it."""
    folder = Path(tempfile.mkdtemp())
    os.environ |= {"CODI_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
