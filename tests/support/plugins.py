"""Distributions of other packages, as pip would install them: modules and entry points in a folder on sys.path."""

import importlib
import sys
from pathlib import Path

import pytest


def install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, name: str, code: str, entry_points: dict[str, dict[str, str]]
) -> None:
    """Write a distribution of one module and put its folder on sys.path.

    Args:
        folder: an empty folder that stands for site-packages.
        name: of the distribution and of its module.
        code: of the module.
        entry_points: group -> name -> "module:attribute".
    """
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / f"{name}.py").write_text(code)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [
        line
        for group, points in entry_points.items()
        for line in (f"[{group}]", *(f"{key} = {value}" for key, value in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
