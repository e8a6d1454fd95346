"""Trainings in pieces: a run that stops in time, and its state in small files, to be continued on another machine.

A borrowed machine may stop after ten minutes, keep nothing, and return only small files. `stop_after` ends every stage
at its next step with a checkpoint; `save_state` writes what the stages have made to a folder, and `restore_state` reads
it. Images and encoded pairs are left out: they are made again, the same.
"""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

PART = 16 << 20  # bytes of a file of the state, at most
INDEX = "state.json"  # of a state: its parts, their sizes and hashes; written last
REMADE = ("images", "pairs", "latents.pt")  # of a workspace: what is made again in less time than it is copied
POLL = 0.2  # seconds

STOP = threading.Event()


class PieceEnd(Exception):
    """The time of this piece is over; what was trained is saved."""


def stop_after(seconds: float) -> threading.Timer:
    """Let every training stop at its next step once `seconds` have passed. The timer can be cancelled."""
    timer = threading.Timer(seconds, STOP.set)
    timer.daemon = True
    timer.start()
    return timer


def check() -> None:
    """Raise PieceEnd if the time is over."""
    if STOP.is_set():
        raise PieceEnd


def output_of(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Run a command and return what it prints; it is interrupted when the time is over, and saves its state then.

    Raises:
        PieceEnd: it was interrupted.
        CalledProcessError: it failed.
    """
    check()
    with subprocess.Popen(command, env=dict(environment), stdout=subprocess.PIPE, text=True) as process:
        interrupted = False
        while True:
            try:
                text, _ = process.communicate(timeout=POLL)
                break
            except subprocess.TimeoutExpired:
                if STOP.is_set() and not interrupted:
                    process.send_signal(signal.SIGINT)
                    interrupted = True
    if process.returncode and interrupted:
        raise PieceEnd
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return text


def save_state(workspace: Path, state: Path, without: Collection[Path] = ()) -> list[Path]:
    """Write the workspace's trainings, but some files of them, to files of at most `PART` bytes, and return them.

    An interrupted call leaves the state that was there before.
    """
    left_out = {path.relative_to(workspace).as_posix() for path in without}
    fresh = state.with_name(state.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    writer = _Parts(fresh)
    with writer, tarfile.open(fileobj=writer, mode="w|") as archive:
        for path in _content(workspace):
            if path.name not in REMADE:
                archive.add(path, path.name, filter=lambda member: None if member.name in left_out else member)
    (fresh / INDEX).write_text(json.dumps(writer.index, indent=1) + "\n")
    state.mkdir(parents=True, exist_ok=True)  # a folder that is a mount, or another's, is filled and not replaced
    (state / INDEX).unlink(missing_ok=True)
    for path in state.glob("state.[0-9]*"):
        path.unlink()
    for path in sorted(fresh.iterdir(), key=lambda path: path.name == INDEX):
        shutil.move(path, state / path.name)
    fresh.rmdir()
    return sorted(state.glob("state.*"))


def restore_state(state: Path, workspace: Path) -> bool:
    """Read a state into a workspace that has no trainings yet; return whether it was read.

    Raises:
        SystemExit: a part is absent or damaged.
    """
    if not (state / INDEX).exists() or any(path.name not in REMADE for path in _content(workspace)):
        return False
    index = json.loads((state / INDEX).read_text())
    for name, digest in index.items():
        path = state / name
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise SystemExit(f"error: {path}: absent or damaged; copy the whole folder {state} again")
    workspace.mkdir(parents=True, exist_ok=True)
    joined = io.BufferedReader(_Joined([state / name for name in index]))
    with tarfile.open(fileobj=joined, mode="r|") as archive:
        archive.extractall(workspace, filter="data")
    return True


def _content(workspace: Path) -> list[Path]:
    return sorted(workspace.iterdir()) if workspace.exists() else []


class _Parts(io.RawIOBase):
    """A file that is written as several: `state.0000`, `state.0001`, ... in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.index, self.buffer = folder, dict[str, str](), bytearray()

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.buffer += data
        while len(self.buffer) >= PART:
            self._flush(PART)
        return len(data)

    def close(self) -> None:
        if self.buffer:
            self._flush(len(self.buffer))
        super().close()

    def _flush(self, count: int) -> None:
        name, content = f"state.{len(self.index):04}", bytes(self.buffer[:count])
        del self.buffer[:count]
        with (self.folder / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self.index[name] = hashlib.sha256(content).hexdigest()


class _Joined(io.RawIOBase):
    """Several files that are read as one."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._bytes = self._chunks(paths)
        self._left = memoryview(b"")

    @staticmethod
    def _chunks(paths: Sequence[Path]) -> Iterator[memoryview]:
        for path in paths:
            yield memoryview(path.read_bytes())

    def readable(self) -> bool:
        return True

    def readinto(self, target: bytearray) -> int:  # type: ignore[override]
        if not self._left:
            self._left = next(self._bytes, memoryview(b""))
        count = min(len(target), len(self._left))
        target[:count] = self._left[:count]
        self._left = self._left[count:]
        return count
