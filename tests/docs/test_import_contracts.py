"""The import contracts find what they are for."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The package in one folder, every module a link except those that a test writes."""
    target = tmp_path / "codi_hub"
    for top, package in (("codi_hub", "."), ("cli", "cli"), ("registry", "registry"), ("tasks", "tasks")):
        for module in (ROOT / top).rglob("*.py"):
            place = target / package / module.relative_to(ROOT / top)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(module)
    return tmp_path


def lint(checkout: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo", ROOT / "pyproject.toml"]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True)


def test_the_contracts_hold(checkout):
    done = lint(checkout)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("images/added.py", "from codi_hub import tasks", "codi_hub.images is not allowed to import codi_hub.tasks"),
        ("registry/added.py", "import torch", "codi_hub.registry is not allowed to import torch"),
        ("folders/added.py", "import codi_hub.training", "codi_hub.folders is not allowed to import codi_hub.training"),
        ("unplaced.py", "", "codi_hub.unplaced"),
    ],
)
def test_a_violation_is_reported(checkout, module, line, broken):
    (checkout / "codi_hub" / module).write_text(f"{line}\n")
    done = lint(checkout)
    assert done.returncode == 1
    assert broken in " ".join(done.stdout.split())


def test_every_layer_exists():
    layers = next(contract for contract in CONTRACTS if contract["type"] == "layers")["layers"]
    names = [name.strip() for line in layers for name in line.replace("|", ":").split(":") if "(" not in name]
    for name in names:
        top = ROOT / name if name in ("cli", "registry", "tasks") else ROOT / "codi_hub" / name
        assert top.is_dir() or top.with_suffix(".py").is_file(), name
