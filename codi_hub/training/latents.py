"""Training pairs, encoded once: latents, conditions and prompts in memory, and in a folder that runs may share."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from codi_hub import seeds
from codi_hub.backbones.backbone import Backbone
from codi_hub.errors import InvalidInput, UsageError
from codi_hub.tasks.base import Pair, Task

ENCODE_BATCH = 16
REPORT_EVERY = 16 * ENCODE_BATCH  # pairs between messages
OnText = Callable[[str], object]


@dataclass(frozen=True)
class PairsSpec:
    """Source, task and size of the pairs; enough for another process to create pair k.

    Attributes:
        like: built-in task.
        options: its options.
        data: source, as `codi_hub.data.sources.open_source` takes it.
        count: number of pairs; None: all.
        size: side of the images in pixels.
        seed: of the data.
    """

    like: str
    options: dict[str, Any]
    data: str
    count: int | None
    size: int
    seed: int


@dataclass
class Cache:
    """Pairs: `x` float16 (N, C, h, w), `conditions` uint8 (N, K, H, W), `targets` uint8 (N, 3, H, W) or None."""

    x: Tensor
    conditions: Tensor
    prompts: list[str]
    targets: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)


def open_pairs(spec: PairsSpec) -> tuple[Any, Task]:
    """Open the source and the task that a spec names."""
    from codi_hub import tasks
    from codi_hub.data.sources import open_source

    task = tasks.load(spec.like, spec.options)
    return open_source(spec.data, task, count=spec.count, size=spec.size, seed=spec.seed), task


_worker: tuple[Any, Task, int] | None = None


def _start_worker(spec: PairsSpec) -> None:
    global _worker
    _worker = (*open_pairs(spec), spec.seed)


def pair_at(source: Any, task: Task, seed: int, index: int) -> Pair:
    """Return pair `index` of a source, the same at every call."""
    return task.make_pair(source[index], seeds.pair(seed, index))


def _pair(index: int) -> Pair:
    assert _worker is not None  # `_start_worker` has run
    return pair_at(*_worker, index)


def make_pairs(spec: PairsSpec, indices: range, workers: int) -> Iterator[Pair]:
    """Yield pairs in order, created by `workers` processes (0: one per core, at most 8).

    Few pairs are created by this process, in which `_start_worker` has run.
    """
    workers = min(workers or min(8, os.cpu_count() or 1), len(indices))
    if workers <= 1 or len(indices) < 4 * ENCODE_BATCH:
        yield from map(_pair, indices)
        return
    # spawned, not forked: a fork of a process with running torch threads can deadlock
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (spec,)) as pool:
        with _interrupts_ignored():  # the processes start here
            pairs = pool.map(_pair, indices, chunksize=8)
        yield from pairs


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Let processes that start meanwhile ignore Ctrl-C, which a terminal sends to them too: this process ends them."""
    if threading.current_thread() is not threading.main_thread():  # only that one can set a handler
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def build(
    spec: PairsSpec,
    indices: range,
    base: Backbone,
    folder: Path,
    *,
    workers: int = 0,
    with_targets: bool = False,
    message: OnText = lambda text: None,
) -> Cache:
    """Encode the pairs of `indices`, or read them from `folder` where they are cached.

    A file's name is a hash of the source, the task, the autoencoder and the first pair. So runs of several
    kinds can share a folder, and a task or data set that changed is noticed where its first pair shows it.

    Raises:
        UsageError: `folder` cannot be written to.
        InvalidInput: pairs whose sides the base cannot encode.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"data.cache_dir {folder}: {error.strerror or error}") from error
    _start_worker(spec)
    parts = [
        spec.__dict__,
        [indices.start, indices.stop],
        base.latents_digest(),
        _pair_digest(_pair(indices[0])),
        with_targets,
    ]
    key = json.dumps(parts)
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
    if cached := _read(path, key):
        return cached
    with closing(make_pairs(spec, indices, workers)) as pairs:  # type: ignore[type-var]
        cache = _encoded(pairs, len(indices), base, with_targets, message)
    _write(path, key, cache)
    return cache


def _encoded(pairs: Iterator[Pair], count: int, base: Backbone, with_targets: bool, message: OnText) -> Cache:
    """Encode the targets of pairs, `ENCODE_BATCH` at a time. Raises InvalidInput."""
    rows: dict[str, list[Tensor]] = {"x": [], "conditions": [], "targets": []}
    prompts: list[str] = []
    multiple = base.latents.multiple
    while group := list(islice(pairs, ENCODE_BATCH)):
        targets = torch.from_numpy(np.stack([pair.target for pair in group])).permute(0, 3, 1, 2)
        if targets.shape[2] % multiple or targets.shape[3] % multiple:
            height, width = targets.shape[2:]
            raise InvalidInput(f"pairs of {width}x{height} px: sides must be multiples of {multiple}")
        with torch.no_grad():
            rows["x"].append(base.encode(targets.float() / 255).half().cpu())
        rows["conditions"].append(torch.from_numpy(np.stack([pair.condition for pair in group])).permute(0, 3, 1, 2))
        if with_targets:
            rows["targets"].append(targets)
        prompts += [pair.prompt for pair in group]
        if len(prompts) % REPORT_EVERY == 0:
            message(f"{len(prompts)} of {count} pairs encoded")
    x, conditions = (torch.cat(rows[name]).contiguous() for name in ("x", "conditions"))
    return Cache(x, conditions, prompts, torch.cat(rows["targets"]).contiguous() if with_targets else None)


def _write(path: Path, key: str, cache: Cache) -> None:
    """Write the tensors, then the prompts: where those are, the tensors are complete."""
    tensors = {"x": cache.x, "conditions": cache.conditions}
    if cache.targets is not None:
        tensors["targets"] = cache.targets
    part = path.with_suffix(f".{os.getpid()}.part")  # another run may be encoding the same pairs
    try:
        save_file(tensors, part)
        os.replace(part, path)
        part.write_text(json.dumps({"mark": key, "prompts": cache.prompts}))
        os.replace(part, path.with_suffix(".json"))
    finally:
        part.unlink(missing_ok=True)


def _read(path: Path, key: str) -> Cache | None:
    """Return the cached pairs; None where there are none, or they are damaged."""
    try:
        described = json.loads(path.with_suffix(".json").read_text())
        tensors = load_file(path)
    except (OSError, ValueError, SafetensorError):
        return None
    if described["mark"] != key:
        return None
    return Cache(tensors["x"], tensors["conditions"], described["prompts"], tensors.get("targets"))


def _pair_digest(pair: Pair) -> str:
    """Return a hash of a pair, which tells it from one that is made otherwise."""
    parts = (pair.target.tobytes(), pair.condition.tobytes(), pair.prompt.encode())
    return hashlib.sha256(b"".join(parts)).hexdigest()
