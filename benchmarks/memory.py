"""Memory of many tasks on one loaded base: of 20 adapters in addition to it, and leaked by swapping."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import psutil

from benchmarks.shelf import Shelf, shelf
from benchmarks.table import Row
from codi_hub.adapters.skeleton import skeleton

COUNT = 20
GOAL = 1000.0  # MB that 20 lora adapters may take on Stable Diffusion 1.5
SWAPS, WARM_UP = 1000, 100
GROWTH = 10.0  # MB that those swaps may leak
MB = 1e6


def rows(bases: list[str], rounds: int) -> Iterator[Row]:
    """Yield the memory of 20 adapters of each light kind, and the growth by swaps."""
    for name in bases:
        with shelf(name, each=1) as kept:
            note = f"20 ControlNets: {COUNT * size(kept, 'control') / MB:.0f} MB of weights, 20 times those of one"
            for kind in ("lora", "static"):
                count = fitting(kept, kind)
                made = taken(kept, kind, count) * COUNT / count
                scaled = f"; {count} measured, more do not fit into the memory, and scaled" if count < COUNT else ""
                goal = GOAL if (kind, name) == ("lora", "sd15") else None
                names = ("memory of 20 tasks", name, f"20 {kind}", "20 ControlNets")
                yield Row(*names, (made,), "MB", goal, True, note + scaled)
    if "nano" in bases:
        yield from growth()


def megabytes() -> float:
    """Return the resident memory of this process."""
    gc.collect()
    return float(psutil.Process().memory_info().rss / MB)


def trim() -> None:
    """Return freed memory to the system, so that it is not reused unmeasured."""
    gc.collect()
    if given_back := getattr(ctypes.CDLL(None), "malloc_trim", None):
        given_back(0)


def size(kept: Shelf, kind: str) -> float:
    """Return the bytes of an adapter's weights in the base's precision."""
    return kept.weights(kept.refs[kind][0]).stat().st_size * kept.base.dtype.itemsize / 2


def fitting(kept: Shelf, kind: str) -> int:
    """Return how many adapters of a kind fit into half of the free memory, at most 20."""
    return int(max(1, min(COUNT, psutil.virtual_memory().available / 2 // size(kept, kind))))


def taken(kept: Shelf, kind: str, count: int) -> float:
    """Return the MB of that many adapters of a kind, loaded from one file."""
    skeleton(kind, kept.base)  # imports what the kind needs
    trim()
    before = megabytes()
    held = [kept.load(kept.refs[kind][0]) for _ in range(count)]
    after = megabytes()
    del held
    return after - before


def growth() -> Iterator[Row]:
    """Yield the memory leaked by 1,000 swaps between three adapters, when all fit and when two fit."""
    with shelf("nano", ["control"], each=3) as kept:
        refs = kept.refs["control"]
        each = int(size(kept, "control"))
        for how, memory in (("resident", 4 * each), ("from disk", 2 * each)):

            def swaps(count: int, memory: int = memory) -> float:
                for k in range(count):
                    kept.hub.use(refs[k % 3], device="cpu", adapter_memory=memory)
                return megabytes()

            before = swaps(WARM_UP)
            left = swaps(SWAPS) - before
            yield Row(f"memory left by {SWAPS} swaps", "nano", how, "", (left,), "MB", GROWTH, True)


def curve(name: str, kind: str, count: int = COUNT, swaps: int = 100) -> list[dict[str, Any]]:
    """Return a point for 1..count resident adapters.

    `adapters`, `megabytes` above the base, and the `seconds` of a swap and `load_seconds` of a load from disk.
    """
    points = []
    with shelf(name, [kind], each=count) as kept:
        refs, use = kept.refs[kind], partial(kept.hub.use, device="cpu", adapter_memory=1 << 40)
        skeleton(kind, kept.base)  # imports what the kind needs
        trim()
        before = megabytes()
        for number in range(1, count + 1):
            began = time.perf_counter()
            use(refs[number - 1])
            loaded = time.perf_counter() - began
            began = time.perf_counter()
            for k in range(swaps):
                use(refs[k % number])
            seconds = (time.perf_counter() - began) / swaps
            point = {"adapters": number, "megabytes": megabytes() - before, "seconds": seconds, "load_seconds": loaded}
            points.append(point)
    return points
