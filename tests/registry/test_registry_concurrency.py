"""Concurrent processes, and processes killed at any line: no lost and no partial changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from codi_hub.registry import Registry

HERE = Path(__file__).parent
PROCESSES = 8


def _start(script: str, *args: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(HERE / script), *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_eight_processes_change_one_registry_at_once(home: Path, tmp_path: Path, backend: str) -> None:
    processes = [_start("concurrent_worker.py", home, tmp_path, number) for number in range(PROCESSES)]
    answers = [process.communicate(timeout=300) for process in processes]
    assert [(process.returncode, err) for process, (_, err) in zip(processes, answers, strict=True)] == [(0, "")] * 8
    accounts = [json.loads(out) for out, _ in answers]
    added = [ref for account in accounts for ref in account["added"]]
    counts = Counter(ref.partition(":")[0] for ref in added)
    assert sorted(added) == sorted(f"{task}:{k + 1}" for task, count in counts.items() for k in range(count))
    weights = {ref: text for account in accounts for ref, text in account["weights"].items()}
    tags = {tag: ref for account in accounts for tag, ref in account["tags"].items()}
    with Registry.open(home, bundled=home / "none") as registry:
        rows = {row.ref: row for row in registry.adapters.list()}
        assert {
            ref: registry.adapters.file(row, "adapter.safetensors").read_text() for ref, row in rows.items()
        } == weights
        found = {f"{row.task}:{tag}": ref for ref, row in rows.items() for tag in row.tags}
        latest = {f"{row.task}:latest" for row in rows.values()}
        assert {tag: ref for tag, ref in found.items() if tag not in latest} == tags
        assert latest <= found.keys()
        runs = registry.runs.list(limit=None)
        assert Counter(run.options["worker"] for run in runs) == Counter(
            {number: account["runs"] for number, account in enumerate(accounts)}
        )
        assert {(run.status, run.ok, run.failed) for run in runs} == {("ok", 2, 0)}
        registry.collect()
        assert registry.verify() == []
    blobs = [path for path in (home / "blobs" / "sha256").rglob("*") if path.is_file()]
    assert len(blobs) == len(set(weights.values())) + 1  # and the adapter.json that all share


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.parametrize("operation", ["rm", "cp", "gc"])
def test_a_process_killed_at_any_line_leaves_a_consistent_registry(
    operation: str, home: Path, bundle: Callable[..., Path], folder: Callable[[str], Path]
) -> None:
    root = bundle(("superres", 1, "sr"))
    with Registry.open(home, bundled=root) as registry:
        facts = {"base": "nano", "kind": "control", "steps": 4, "parameters": 1, "metrics": {}}
        for task, weights in (("depth", "a"), ("depth", "b"), ("mist", "c"), ("old", "d"), ("old", "e")):
            registry.adapters.add(folder(weights), task=task, **facts)
        registry.adapters.tag("depth", "prod")
        registry.adapters.remove(["old:1", "old:2"])
        (home / "blobs" / "tmp" / "half.part").write_text("half")
    out, err = _start("kill_at_each_line.py", home, root, operation, 29).communicate(
        timeout=300
    )  # 1: at every single line
    assert err == ""
    assert int(out) > 50  # lines there were
