"""Training pairs, encoded once: latents, conditions and prompts kept in memory and in a folder that runs may share."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from codi_hub.backbones.unet import FrozenBase
from codi_hub.errors import InvalidInput, UsageError
from codi_hub.tasks.base import Pair, Task

ENCODED_TOGETHER = 16
Message = Callable[[str], None]


@dataclass(frozen=True)
class PairsSpec:
    """What pairs are made of; enough for another process to make pair k."""

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
    """The source and the task a spec names."""
    from codi_hub import tasks
    from codi_hub.data.sources import open_source

    task = tasks.load(spec.like, spec.options)
    return open_source(spec.data, task, count=spec.count, size=spec.size, seed=spec.seed), task


_worker: tuple[Any, Task, int] | None = None


def _start_worker(spec: PairsSpec) -> None:
    global _worker
    _worker = (*open_pairs(spec), spec.seed)


def pair_at(source: Any, task: Task, seed: int, index: int) -> Pair:
    """Pair `index` of a source, always the same."""
    return task.make_pair(source[index], np.random.default_rng([seed, 1, index]))


def _pair(index: int) -> Pair:
    assert _worker is not None  # `_start_worker` has run
    return pair_at(*_worker, index)


def make_pairs(spec: PairsSpec, indices: range, workers: int) -> Iterator[Pair]:
    """Pairs in order, made by `workers` processes (0: one per core, at most 8), or by this one, begun as a worker."""
    workers = min(workers or min(8, os.cpu_count() or 1), len(indices))
    if workers <= 1 or len(indices) < 4 * ENCODED_TOGETHER:
        yield from map(_pair, indices)
        return
    # spawned, not forked: a fork of a process whose torch threads run may never come back
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (spec,)) as pool:
        yield from pool.map(_pair, indices, chunksize=8)


def build(
    spec: PairsSpec,
    indices: range,
    base: FrozenBase,
    folder: Path,
    *,
    workers: int = 0,
    mirror: bool = False,
    with_targets: bool = False,
    message: Message = lambda text: None,
) -> Cache:
    """Encodes the pairs of `indices`, or reads them from `folder` where they lie encoded already.

    With `mirror`, each is followed by its mirror image.

    The files are called by what the pairs are made of and encoded with, and by what the first one looks like. So runs
    of several kinds can share a folder, and a task or data set that changed is noticed where its first pair shows it.

    Raises:
        UsageError: `folder` cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--pairs {folder}: {error.strerror or error}") from error
    _start_worker(spec)
    marks = [
        spec.__dict__,
        [indices.start, indices.stop],
        _encoder_mark(base),
        _pair_mark(_pair(indices[0])),
        with_targets,
        *["mirror"] * mirror,
    ]
    mark = json.dumps(marks)
    path = folder / f"{hashlib.sha256(mark.encode()).hexdigest()[:16]}.safetensors"
    words = path.with_suffix(".json")
    if kept := _kept(path, words, mark):
        return kept
    with ExitStack() as stack:
        pairs = make_pairs(spec, indices, workers)
        stack.callback(pairs.close)  # type: ignore[attr-defined]
        both = (one for pair in pairs for one in (pair, pair.mirrored()))
        made = _encoded(both if mirror else pairs, len(indices) * (1 + mirror), base, with_targets, message)
    tensors = {"x": made.x, "conditions": made.conditions} | ({} if made.targets is None else {"targets": made.targets})
    own = folder / f"{path.stem}.{os.getpid()}.part"  # another run may be making the same
    try:
        save_file(tensors, own)
        os.replace(own, path)
        own.write_text(json.dumps({"mark": mark, "prompts": made.prompts}))
        os.replace(own, words)  # last: where it is, the tensors are whole
    finally:
        own.unlink(missing_ok=True)
    return made


def _encoded(pairs: Iterator[Pair], count: int, base: FrozenBase, with_targets: bool, message: Message) -> Cache:
    """The pairs with their targets encoded, `ENCODED_TOGETHER` at a time.

    Raises:
        InvalidInput: pairs whose sides the base cannot encode.
    """
    rows: dict[str, list[Tensor]] = {"x": [], "conditions": [], "targets": []}
    prompts: list[str] = []
    for group in _batched(pairs, ENCODED_TOGETHER):
        targets = torch.from_numpy(np.stack([pair.target for pair in group])).permute(0, 3, 1, 2)
        if targets.shape[2] % base.multiple or targets.shape[3] % base.multiple:
            raise InvalidInput(
                f"pairs of {targets.shape[3]}x{targets.shape[2]} px: sides must be multiples of {base.multiple}"
            )
        with torch.no_grad():
            rows["x"].append(base.encode(targets.float() / 255).half().cpu())
        rows["conditions"].append(torch.from_numpy(np.stack([pair.condition for pair in group])).permute(0, 3, 1, 2))
        if with_targets:
            rows["targets"].append(targets)
        prompts += [pair.prompt for pair in group]
        if len(prompts) % (16 * ENCODED_TOGETHER) == 0:
            message(f"{len(prompts)} of {count} pairs made and encoded")
    x, conditions = (torch.cat(rows[name]).contiguous() for name in ("x", "conditions"))
    return Cache(x, conditions, prompts, torch.cat(rows["targets"]).contiguous() if with_targets else None)


def _kept(path: Path, words: Path, mark: str) -> Cache | None:
    """The pairs that lie there; None where there are none, or they are damaged."""
    try:
        known = json.loads(words.read_text())
        tensors = load_file(path)
    except (OSError, ValueError, SafetensorError):
        return None
    if known["mark"] != mark:
        return None
    return Cache(tensors["x"], tensors["conditions"], known["prompts"], tensors.get("targets"))


def _pair_mark(pair: Pair) -> str:
    """What tells pairs apart that were made otherwise: a hash of one."""
    parts = (pair.target.tobytes(), pair.condition.tobytes(), pair.prompt.encode())
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _encoder_mark(base: FrozenBase) -> str:
    """What tells latents of two bases apart: a hash of the autoencoder's encoding half and of the latents' scale."""
    digest = hashlib.sha256(f"{base.scaling_factor} {base.shift_factor}".encode())
    for name, value in base.vae.state_dict().items():
        if not name.startswith(("decoder.", "post_quant_conv.")):
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _batched(pairs: Iterator[Pair], count: int) -> Iterator[list[Pair]]:
    group: list[Pair] = []
    for pair in pairs:
        group.append(pair)
        if len(group) == count:
            yield group
            group = []
    if group:
        yield group
