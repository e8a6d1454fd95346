"""A real registry on a real SQLite file, and adapter folders to put in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from codi_hub.registry import AdapterRow, Registry

Add = Callable[..., tuple[AdapterRow, bool]]


@pytest.fixture
def nothing_bundled(tmp_path: Path) -> Path:
    return tmp_path / "no-bundle"


@pytest.fixture
def registry(home: Path, nothing_bundled: Path) -> Iterator[Registry]:
    """Two bases, `nano` (in use) and `sd15`; no adapters."""
    with Registry.open(home, bundled=nothing_bundled) as opened:
        opened.bases.add("nano", "/models/nano", family="f1", sketch={"w": [1.0]})
        opened.bases.add("sd15", "runwayml/sd15", family="f2")
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Path]:
    """Makes an adapter's folder; the weights are the text given."""

    def make(weights: str) -> Path:
        where = tmp_path / f"adapter-{hashlib.sha256(weights.encode()).hexdigest()[:8]}"
        where.mkdir(exist_ok=True)
        (where / "adapter.safetensors").write_text(weights)
        (where / "adapter.json").write_text("{}")
        (where / "README.md").write_text("# card")
        return where

    return make


@pytest.fixture
def add(registry: Registry, folder: Callable[[str], Path]) -> Add:
    """`add("depth", score=1.0)` -> (row, whether latest moved)."""

    def run(task: str = "depth", base: str = "nano", weights: str = "weights", **more: Any) -> tuple[AdapterRow, bool]:
        facts = {"kind": "control", "steps": 4, "parameters": 7, "metrics": {"psnr": 20.0}} | more
        return registry.adapters.add(folder(weights), task=task, base=base, **facts)

    return run


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[..., Path]:
    """Makes or changes a bundle: `bundle(("superres", 1, "weights"), ...)`."""

    def make(*adapters: tuple[str, int, str], score: float | None = None) -> Path:
        root = tmp_path / "bundle"
        (root / "base" / "unet").mkdir(parents=True, exist_ok=True)
        (root / "base" / "unet" / "model.safetensors").write_text("unet")
        base = {"name": "nano", "path": "base", "family": "f1", "sketch": {"w": [1.0]}}
        entries = []
        for task, version, weights in adapters:
            (root / task).mkdir(exist_ok=True)
            (root / task / "adapter.safetensors").write_text(weights)
            files = {"adapter.safetensors": {"sha256": _hash(weights), "bytes": len(weights)}}
            entry = {"task": task, "version": version, "path": task, "kind": "control", "steps": 4, "parameters": 9}
            entries.append(entry | {"metrics": {}, "score": score, "created": "2026-01-01T00:00:00", "files": files})
        base_files = {"files": {"unet/model.safetensors": _hash("unet")}}
        (root / "manifest.json").write_text(json.dumps({"base": base | base_files, "adapters": entries}))
        return root

    return make


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
