"""A temporary registry with adapters of random weights on one of the bases."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.bases import folder_of
from codi_hub.adapters import format
from codi_hub.adapters.adapter import Adapter
from codi_hub.adapters.skeleton import skeleton
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.hub import Hub
from codi_hub.inference.models import Placement

KINDS = ("control", "lora", "static")
TASK = "superres"
DEVIATION = 0.02  # of every weight

Make = Callable[[str, UNetBackbone, int], Adapter]
"""(kind, base, seed) -> an adapter."""


class Shelf(NamedTuple):
    """A Hub, its loaded base, and the references of the adapters of each kind."""

    hub: Hub
    base: UNetBackbone
    refs: dict[str, list[str]]

    def weights(self, ref: str) -> Path:
        """Return the file of an adapter's weights."""
        return self.file(ref, format.WEIGHTS)

    def file(self, ref: str, name: str) -> Path:
        """Return a file of an adapter."""
        row = self.hub.catalog.registry.adapters.resolve(ref, self.hub.base)
        return self.hub.catalog.registry.adapters.file(row, name)

    def load(self, ref: str) -> Adapter:
        """Load an adapter without caching it."""
        return format.load(self.weights(ref), format.read_record(self.file(ref, format.RECORD)), self.base)


@contextmanager
def shelf(
    name: str, kinds: Iterable[str] = KINDS, each: int = 2, *, task: str = TASK, make: Make | None = None
) -> Iterator[Shelf]:
    """Yield `each` adapters of every kind on a base, loaded on the CPU in its fastest dtype."""
    make = make or noise
    with tempfile.TemporaryDirectory() as home, Hub.open(home, base=f"bench-{name}") as hub:
        hub.catalog.add_base(f"bench-{name}", folder_of(name))
        base = hub.models.base(f"bench-{name}", Placement(device="cpu"))
        assert isinstance(base, UNetBackbone)
        made = Shelf(hub, base, {})
        for kind in kinds:
            made.refs[kind] = [_added(made, Path(home) / "new", task, make(kind, base, seed)) for seed in range(each)]
        yield made


def noise(kind: str, base: UNetBackbone, seed: int) -> Adapter:
    """Return an adapter whose weights are all noise."""
    adapter, generator = skeleton(kind, base), torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(value.shape, generator=generator).mul_(DEVIATION).half()
        for name, value in adapter.state_dict().items()
    }
    adapter.load_state_dict(weights, assign=True)
    return adapter


def _added(shelf: Shelf, folder: Path, task: str, adapter: Adapter) -> str:
    base, name, kind = shelf.base, shelf.hub.base or "", adapter.kind
    record = format.AdapterRecord(
        task=task,
        kind=kind,
        base=format.BaseRecord(name=name, family=base.fingerprint.family, sketch=base.fingerprint.sketch),
        prediction_type=base.schedule.prediction_type,
        steps=4,
        config=adapter.config,
    )
    format.write(folder, adapter, record, "# Random weights\n")
    values = {"kind": kind, "steps": 4, "parameters": 0, "metrics": {}}
    row, _ = shelf.hub.catalog.registry.adapters.add(folder, task=task, base=name, **values)
    shutil.rmtree(folder)
    return row.ref
