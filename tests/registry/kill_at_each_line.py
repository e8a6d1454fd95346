"""Kill an operation at each of its lines in turn, each time in a copy of the home, and check the remaining state."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import codi_hub.registry
from codi_hub.registry import Registry

CODE = str(Path(codi_hub.registry.__file__).parent)
OPERATIONS = {
    "rm": lambda registry: registry.adapters.remove(["depth:2", "mist:1"]),
    "cp": lambda registry: registry.adapters.copy("superres", "x2"),
    "gc": lambda registry: registry.collect(),
}


def killed(home: Path, bundle: Path, operation: str, line: int) -> bool:
    """Return whether the operation has that many lines and so was killed."""
    if child := os.fork():
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    with Registry.open(home, bundled=bundle) as registry:
        left = line

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal left
            if not frame.f_code.co_filename.startswith(CODE):
                return None
            left -= event == "line"
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        OPERATIONS[operation](registry)
        sys.settrace(None)
    os._exit(0)


def look(home: Path, bundle: Path, operation: str) -> None:
    """Check that listed adapters are complete, other files are reported as garbage, and no removal is partial."""
    with Registry.open(home, bundled=bundle) as registry:
        problems = registry.verify()
        assert {problem.kind for problem in problems} <= {"orphan", "leftover"}, problems
        assert all("`codi gc` deletes it" in problem.message for problem in problems)
        rows = {row.ref: row for row in registry.adapters.list()}
        for row in rows.values():
            for name in registry.adapters.files(row):
                registry.adapters.file(row, name)
        tags = {f"{row.task}:{tag}": row.ref for row in rows.values() for tag in row.tags}
        there = {"depth:1", "superres:1"} | rows.keys() & {"x2:1"}
        if "mist:1" in rows:
            there |= {"depth:2", "mist:1"}
            assert (tags["depth:latest"], tags["depth:prod"], tags["mist:latest"]) == ("depth:2", "depth:2", "mist:1")
        else:
            assert operation == "rm"
            assert (tags["depth:latest"], "depth:prod" in tags) == ("depth:1", False)
        assert rows.keys() == there
        if operation != "rm" or "mist:1" in rows:
            OPERATIONS[operation](registry)
        registry.collect()
        assert registry.verify() == []


if __name__ == "__main__":
    home, bundle, operation, step = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    line, died = 1, True
    while died:
        copy = home.with_name(f"{home.name}-{operation}-{line}")
        shutil.copytree(home, copy)
        died = killed(copy, bundle, operation, line)
        look(copy, bundle, operation)
        shutil.rmtree(copy)
        line += step
    print(line)
