"""Cost of registry queries and changes as it grows, on real tables with 100,000 adapters.

`python -m benchmarks.registry [ADAPTERS]` prints a table of milliseconds.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import startup
from benchmarks.table import Row, in_turn
from codi_hub.catalog import Catalog
from codi_hub.cli.adapters import PAGE
from codi_hub.registry import versions
from codi_hub.registry.models import READY, adapter, adapter_file, base, run, run_item, tag, task
from codi_hub.registry.rows import now

ADAPTERS = 100_000
GOAL = 50.0  # ms
VERSIONS, BASES = 10, 5  # of a task on a base; so a task has 50 adapters, and 100,000 are of 2,000 tasks
ITEMS = 10_000  # images of the run that is resumed
OPTIONS = {"sampler": "ddim", "temperature": 1.0, "dtype": "auto", "steps": 4, "task_options": {"scale": 4}}
LOOKUPS = ("resolve", "show", "list", "task show", "file of")  # prefixes of the queries with a goal


def rows(bases: list[str], rounds: int) -> Iterator[Row]:
    """Yield the milliseconds of each query at `ADAPTERS` rows, and the seconds of a command."""
    where = f"registry of {ADAPTERS:,} adapters"
    with registry_of(ADAPTERS) as catalog:
        seconds = in_turn(questions(catalog, ADAPTERS), rounds)
        home = catalog.registry.home
        whole = in_turn({startup.OURS: lambda: startup.python(home, *startup.LIST)}, rounds)
    for name, values in seconds.items():
        goal = GOAL if name.startswith(LOOKUPS) else None
        in_ms = tuple(1000 * value for value in values)
        yield Row(where, "", name, "", in_ms, "ms", goal, at_most=True)
    yield Row(where, "", startup.OURS, "", tuple(whole[startup.OURS]), "s", startup.GOAL, at_most=True)


@contextlib.contextmanager
def registry_of(adapters: int) -> Iterator[Catalog]:
    """Yield a temporary catalog with that many adapters, and as many items in earlier runs."""
    with tempfile.TemporaryDirectory() as folder, Catalog.open(Path(folder) / "home") as catalog:
        made = Path(folder) / "adapter"
        made.mkdir()
        record = catalog.show("superres")["config"]
        files = {"adapter.safetensors": "weights", "adapter.json": json.dumps(record), "README.md": "# A card"}
        for name, content in files.items():
            (made / name).write_text(content)
        _fill(catalog, made, adapters)
        yield catalog


def questions(catalog: Catalog, adapters: int) -> dict[str, Callable[[], object]]:
    """Return the timed operations by name; all concern a task, a base and a version in the middle."""
    registry, numbers = catalog.registry, count()
    middle = adapters // 2
    name, base_name, version = _task(middle), _base(middle), middle % VERSIONS + 1
    there = Catalog(registry.home, base=base_name)
    there.registry = registry
    added = registry.home.parent / "adapter"
    facts: dict[str, Any] = {"kind": "lora", "steps": 4, "parameters": 1, "metrics": {}}
    outputs = [_output(k) for k in range(ITEMS)]

    def copied() -> None:
        catalog.add_task(wanted := f"copy-{next(numbers)}", "superres")
        there.copy(f"{name}:{version}", wanted)

    def removed() -> None:
        row, _ = registry.adapters.add(added, task="short-lived", base=base_name, **facts)
        there.remove([row.ref])

    def run_begun() -> None:
        registry.runs.start(name, f"{name}:{version}", OPTIONS)

    return {
        "resolve `task`": lambda: there.registry.adapters.resolve(name, base_name),
        "resolve `task:version`": lambda: registry.adapters.resolve(f"{name}:{version}", base_name),
        "resolve `task:tag`": lambda: registry.adapters.resolve(f"{name}:prod", base_name),
        "show": lambda: there.show(f"{name}:{version}"),
        "list of a task": lambda: catalog.list(name),
        "list, first page": lambda: catalog.list(limit=PAGE),
        "list, last page": lambda: catalog.list(limit=PAGE, offset=max(0, adapters - PAGE)),
        "list of a base, first page": lambda: catalog.list(base=base_name, limit=PAGE),
        "task show": lambda: catalog.show_task(name),
        "file of an adapter, checked": lambda: registry.adapters.file(
            registry.adapters.resolve(name, base_name), "adapter.safetensors"
        ),
        "add": lambda: registry.adapters.add(added, task=name, base=base_name, **facts),
        "tag": lambda: there.tag(f"{name}:{version}", "prod"),
        "task add, cp": copied,
        "add, rm": removed,
        "start of a run": run_begun,
        "outputs of a new run": lambda: registry.runs.last_outputs(f"{name}:{version}", OPTIONS, []),
        "outputs of a finished run": lambda: registry.runs.last_outputs("superres:1", OPTIONS, outputs),
        "gc --dry-run": lambda: catalog.collect(dry_run=True),
    }


def _task(k: int) -> str:
    return f"restore-{k // (VERSIONS * BASES):05}"


def _base(k: int) -> str:
    return f"base-{k // VERSIONS % BASES}"


def _output(k: int) -> str:
    return f"/data/photographs/2026/album-{k // 500:03}_superres/picture-{k:06}.png"


def _fill(catalog: Catalog, folder: Path, adapters: int) -> None:
    registry = catalog.registry
    sketch = registry.bases.get("nano").sketch
    for k in range(BASES):
        registry.bases.add(f"base-{k}", f"/models/base-{k}", family=f"{k:064x}", sketch=sketch)
    facts: dict[str, Any] = {"kind": "lora", "steps": 4, "parameters": 1, "metrics": {}}
    stored, _ = registry.adapters.add(folder, task="first", base="base-0", **facts)
    metrics = catalog.list("superres")[0].metrics
    with registry.database.write() as connection:
        ids = {row.name: row.id for row in connection.execute(base.select())}
        files = connection.execute(adapter_file.select().where(adapter_file.c.adapter_id == stored.id)).all()
        tasks = [_task(k) for k in range(0, adapters, VERSIONS * BASES)]
        values = {"like": "superres", "options": {"scale": 2}, "created": now()}
        connection.execute(task.insert(), [{"name": name} | values for name in tasks])
        for start in range(0, adapters, 10_000):
            some = range(start, min(start + 10_000, adapters))
            connection.execute(adapter.insert(), [_adapter(k, ids[_base(k)], stored, metrics) for k in some])
            links = [dict(file._mapping) | {"adapter_id": stored.id + 1 + k} for k in some for file in files]
            connection.execute(adapter_file.insert(), links)
        connection.execute(tag.insert(), [one for k in range(adapters) for one in _tags(k, ids[_base(k)], adapters)])
        _fill_runs(connection, adapters)


def _adapter(k: int, base_id: int, stored: Any, metrics: dict[str, Any]) -> dict[str, Any]:
    score = random.Random(k).uniform(20, 30)
    same = {name: getattr(stored, name) for name in ("kind", "steps", "parameters", "bytes", "sha256", "created")}
    named = {"id": stored.id + 1 + k, "task": _task(k), "base_id": base_id, "version": k % VERSIONS + 1}
    return named | same | {"status": READY, "metrics": metrics | {"psnr": score}, "score": score}


def _tags(k: int, base_id: int, adapters: int) -> Iterator[dict[str, Any]]:
    """Yield `latest` on the last version of a task and base, and `prod` three before it, or on the first."""
    last = min((k // VERSIONS + 1) * VERSIONS, adapters) - 1
    point = {"task": _task(k), "base_id": base_id, "version": k % VERSIONS + 1}
    if k == last:
        yield point | {"name": "latest"}
    if k == max(last - 3, k // VERSIONS * VERSIONS):
        yield point | {"name": "prod"}


def _fill_runs(connection: Any, items: int) -> None:
    """Insert a run of `ITEMS` images, and later runs of a thousand each, together as many as there are adapters."""
    begun = {"task": "superres", "options": OPTIONS, "status": "ok", "started": now()}
    item = {"status": "ok", "seed": 7, "seconds": 0.3, "input_hash": "ab" * 32}

    def add(adapter_ref: str, outputs: list[str]) -> None:
        run_id = versions.insert(connection, run, begun | {"adapter": adapter_ref})
        made = [{"run_id": run_id, "input": output.replace("_superres", ""), "output": output} for output in outputs]
        connection.execute(run_item.insert(), [one | item for one in made])

    add("superres:1", [_output(k) for k in range(ITEMS)])
    for start in range(0, items, 1000):
        some = range(start, min(start + 1000, items))
        add(f"{_task(start)}:1", [_output(k).replace("data", "more") for k in some])


def main() -> None:
    """Print the milliseconds of every query."""
    adapters = int(sys.argv[1]) if sys.argv[1:] else ADAPTERS
    with registry_of(adapters) as catalog:
        for name, values in in_turn(questions(catalog, adapters), 5).items():
            print(f"{name:30} {1000 * median(values):8.1f} ms", flush=True)
        print(json.dumps({"database": (catalog.registry.home / "registry.db").stat().st_size}))


if __name__ == "__main__":
    main()
