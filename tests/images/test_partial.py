"""Temporary files: removed when their process was killed, and left to a process that writes them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from codi_hub.images.io import atomic_file
from codi_hub.partial import clean, temporary

KILLED = """
import os, sys
from pathlib import Path
from codi_hub.partial import temporary
with temporary(Path(sys.argv[1]), Path.mkdir if sys.argv[2] == "folder" else Path.touch):
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_is_removed(tmp_path: Path, kind: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), kind])
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    clean(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_written_and_files_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / "mine.part").touch()
    with atomic_file(tmp_path / "a.png") as file:
        file.write(b"half")
        clean(tmp_path)
        assert len(list(tmp_path.iterdir())) == 2
    assert (tmp_path / "a.png").read_bytes() == b"half"
    clean(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "mine.part"]


def test_a_file_that_another_process_cleans_before_it_is_held_is_created_again(tmp_path: Path) -> None:
    created: list[Path] = []

    def create(path: Path) -> None:
        path.touch()
        created.append(path)
        if len(created) == 1:
            clean(tmp_path)

    with temporary(tmp_path, create) as path:
        assert os.listdir(tmp_path) == [path.name]
    assert len(created) == 2
