"""The package as it is declared: complete, and without torchvision."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import codi_hub

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = {"cli": "codi_hub.cli", "registry": "codi_hub.registry", "tasks": "codi_hub.tasks"}


def test_every_folder_of_code_is_declared_as_a_package():
    found = set()
    for top in ("codi_hub", *FOLDERS):
        for module in (ROOT / top).rglob("*.py"):
            first, *rest = module.relative_to(ROOT).parent.parts
            found.add(".".join([FOLDERS.get(first, first), *rest]))
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


def test_what_is_no_code_is_declared_as_data():
    data = PROJECT["tool"]["setuptools"]["package-data"]
    for file in (ROOT / "codi_hub" / "folders").iterdir():
        if file.is_file() and file.suffix != ".py":
            assert any(file.match(pattern) for pattern in data["codi_hub.folders"])
    assert (ROOT / "codi_hub" / "folders" / "report.html.j2").is_file()
    assert data["codi_hub.backbones"] == ["configs/**/*"]


def test_public_names_are_there_and_no_others():
    assert all(getattr(codi_hub, name) is not None for name in codi_hub.__all__)
    assert codi_hub.__version__ == PROJECT["project"]["version"]
    assert not hasattr(codi_hub, "nosuch")


def test_nothing_that_any_extra_installs_brings_torchvision():
    seen, todo = set(), [("codi-hub", extra) for extra in ("", *PROJECT["project"]["optional-dependencies"])]
    while todo:
        name, extra = todo.pop()
        seen.add(name)
        for requirement in _requirements(name, extra):
            if requirement not in seen:
                todo.append((requirement, ""))
    assert "torch" in seen
    assert "torchvision" not in seen


def _requirements(name: str, extra: str) -> list[str]:
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:  # of another platform
        return []
    wanted = [line for line in lines if "extra ==" not in line or (extra and re.search(f"extra == .{extra}\\b", line))]
    return [re.match(r"[\w.-]+", line)[0].lower() for line in wanted]


def test_every_constraint_is_one_exact_version():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    assert "torch==2.13.0" in lines
