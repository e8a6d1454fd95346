"""End commands at random moments and check the state: `make soak`, or `python tests/soak.py [ROUNDS] [SEED]`.

As many rounds end with SIGKILL as with SIGTERM, which a command answers with 130, or with its result if it came late.
Every command runs in a forked child, so that the start of Python takes none of the time in which it can be ended.
After each the home is checked: everything that a command has reported exists and is intact, `codi verify` finds
only files that `codi gc` deletes, no image is half-written, and interrupted commands can be resumed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "support"))
os.environ["OMP_NUM_THREADS"] = "1"  # a fork must not find other threads

import numpy as np
from PIL import Image
from tiny import save_base, scheduler_config

from codi_hub import cli
from codi_hub.registry import Registry

SMALL = ["--train-steps", "4", "--checkpoint-every", "1", "--count", "6", "--size", "32", "--batch", "2"]
SMALL += ["--precision", "fp32", "--device", "cpu", "--sample-every", "0", "--base", "tiny"]
IMAGES = 4
SIGNALS = {signal.SIGKILL: "SIGKILL", signal.SIGTERM: "SIGTERM"}
SLOWEST = 120.0  # seconds after which a command counts as stuck


@dataclass
class Answer:
    """The result of a command; `code` is None if a signal ended it."""

    code: int | None
    out: str
    err: str
    seconds: float

    @property
    def report(self) -> Any:
        return json.loads(self.out)


@dataclass
class Soak:
    """A home, what was reported to its user, and the kills so far.

    Attributes:
        versions: reference -> True if it must exist; False if its removal was killed, so that it may exist.
        tasks: names that were reported as registered.
        interrupted: arguments of killed trainings and runs.
        typical: command -> seconds without a kill.
        repeated: images that were complete and were generated again, because the kill came before their record.
        kills: (signal, command) -> number of times that the signal ended it in the middle.
        late: (signal, command) -> number of times that the command had its result all the same.
    """

    folder: Path
    chance: random.Random
    versions: dict[str, bool] = field(default_factory=dict)
    tasks: set[str] = field(default_factory=set)
    interrupted: list[tuple[str, list[str]]] = field(default_factory=list)
    typical: dict[str, float] = field(default_factory=dict)
    kills: Counter[tuple[int, str]] = field(default_factory=Counter)
    late: Counter[tuple[int, str]] = field(default_factory=Counter)
    parts: set[Path] = field(default_factory=set)
    repeated: int = 0
    number: int = 0

    def prepare(self) -> None:
        """Create a base and images, and run every command once without a kill."""
        os.environ["CODI_HOME"] = str(self.folder / "home")
        if (maker := os.fork()) == 0:  # torch computes in children only: what it sets up for that survives no fork
            try:
                save_base(self.folder / "base", scheduler_config("v_prediction", zero_snr=True))
                os._exit(0)
            finally:
                os._exit(70)
        assert os.waitpid(maker, 0)[1] == 0
        (self.folder / "in").mkdir()
        for k in range(IMAGES):
            pixels = np.random.default_rng(k).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(self.folder / "in" / f"{k}.png")
        assert self.codi("base", "add", "tiny", str(self.folder / "base")).code == 0
        for name in ("distill", "distill", "task add", "tag", "cp", "run", "rm", "gc"):
            answer = self.one(name, kill=False)
            assert answer.code == 0, answer.err
            self.typical[name] = answer.seconds
        self.check()

    def codi(self, *args: str, kill_after: float = SLOWEST, number: int = signal.SIGKILL) -> Answer:
        """Run a command in a child process; send it a signal after `kill_after` seconds."""
        began = time.monotonic()
        streams = [self.folder / name for name in ("stdout", "stderr")]
        for stream in streams:
            stream.write_text("")
        child = os.fork()
        if child == 0:
            for number, stream in enumerate(streams, 1):
                os.dup2(os.open(stream, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            try:
                os._exit(_exit_code(list(args)))
            finally:
                os._exit(70)
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() - began < kill_after:
            time.sleep(0.001)
        seconds = time.monotonic() - began
        if in_time := ended != (0, 0):
            assert os.WIFEXITED(ended[1]), f"codi {' '.join(args)} died of signal {ended[1]}"
        else:
            assert kill_after < SLOWEST, f"codi {' '.join(args)} hangs"
            os.kill(child, number)
            ended = self.ended(child, args)
        code = os.WEXITSTATUS(ended[1]) if os.WIFEXITED(ended[1]) else None
        if number == signal.SIGTERM and not in_time:
            quiet = not any(stream.stat().st_size for stream in streams)
            assert code is not None or quiet, f"codi {' '.join(args)} died of SIGTERM"  # before its first line of code
            code = None if code == 130 else code
        return Answer(code, *(stream.read_text() for stream in streams), seconds)

    def ended(self, child: int, args: tuple[str, ...]) -> tuple[int, int]:
        """Wait for the end of a child that has got a signal."""
        began = time.monotonic()
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
            assert time.monotonic() - began < SLOWEST, f"codi {' '.join(args)} does not end"
            time.sleep(0.001)
        return ended

    def one(self, name: str, *, kill: bool = True, number: int = signal.SIGKILL) -> Answer:
        """Run a command once, ended by a signal at a random moment or not, and note what it reported."""
        args = self.arguments(name)
        after = self.chance.uniform(0, 1.05 * self.typical[name]) if kill else SLOWEST
        answer = self.codi(*name.split(), *args, kill_after=after, number=number)
        if kill:
            (self.kills if answer.code is None else self.late)[number, name] += 1
        assert answer.code in (0, None), f"codi {name} {' '.join(args)}: {answer.code}, {answer.err}"
        assert "Traceback" not in answer.err, answer.err
        done = answer.code == 0
        if name in ("distill", "cp") and done:
            self.versions[answer.report["adapter" if name == "distill" else "ref"]] = True
        elif name in ("distill", "run") and not done:
            self.interrupted.append((name, args))
        elif name == "task add" and done:
            self.tasks.add(args[0])
        elif name == "rm" and done:
            del self.versions[args[0]]
        elif name == "rm":
            self.versions[args[0]] = False
        return answer

    def arguments(self, name: str) -> list[str]:
        """Return the arguments of the next command of a name."""
        self.number += 1
        sure = [ref for ref, there in self.versions.items() if there]
        some = self.chance.choice(sure) if sure else ""
        base = ["--base", "tiny"]
        if name == "distill":
            return ["depth", *SMALL, "--run-dir", str(self.folder / f"run-{self.number}"), "--json"]
        if name == "task add":
            return [f"task{self.number}", "--like", "superres", "--scale", "2"]
        if name == "tag":
            return [some, f"tag{self.number % 5}", *base]
        if name == "cp":
            like = f"copy{self.number}"
            assert self.codi("task", "add", like, "--like", "depth").code == 0
            return [some, like, *base, "--json"]
        if name == "rm":
            return [some, *base]
        if name == "run":
            out = self.folder / "out" / str(self.number)
            return [some, str(self.folder / "in"), "-o", str(out), "--steps", "1", "--device", "cpu", *base]
        return []

    def round(self, number: int) -> None:
        """End one command by a signal and check the state; with fewer than three versions left, train one first."""
        if sum(self.versions.values()) < 3:
            self.one("distill", kill=False)
        name = self.chance.choice(["distill", "distill", "run", "run", "task add", "tag", "cp", "rm", "gc"])
        answer = self.one(name, number=number)
        self.check()
        if number == signal.SIGTERM and answer.code is None:
            rest = [path for path in self.folder.rglob(".codi-*.part") if path not in self.parts]
            assert not rest, f"codi {name} left {rest}"
        self.parts = set(self.folder.rglob(".codi-*.part"))  # those of killed commands, until the next start there
        if self.chance.random() < 0.1:
            assert self.codi("gc").code == 0
            with Registry.open() as registry:
                assert registry.verify() == []
        if self.interrupted and self.chance.random() < 0.3:
            self.resume(*self.interrupted.pop())

    def resume(self, name: str, args: list[str]) -> None:
        """Resume a killed command: a training from its last checkpoint, if any; a run with its missing images."""
        if name == "distill":
            folder = Path(args[args.index("--run-dir") + 1])
            there = (folder / "checkpoint.safetensors").exists()
            answer = self.codi(name, *args, *["--resume"] * (folder / "config.yaml").exists())
            assert answer.code == 0, answer.err
            assert ("Continuing from step" in answer.err or answer.report["resumed_finished"]) == there, answer.err
            assert not list(folder.glob(".codi-*.part"))
            self.versions[answer.report["adapter"]] = True
        elif self.versions.get(args[0]):
            out = args[args.index("-o") + 1]
            lying = len(list(Path(out).glob("*.png")))
            with Registry.open() as registry:
                rows = [row for run in registry.runs.list(limit=None) for row in registry.runs.items(run.id)]
            recorded = sum(row.status == "ok" and str(row.output).startswith(f"{out}/") for row in rows)
            report = self.codi(name, *args, "--json").report
            assert (report["ok"] + report["skipped"], report["failed"]) == (IMAGES, 0)
            assert report["skipped"] == recorded
            self.repeated += lying - recorded

    def check(self) -> None:
        """Raise AssertionError if anything is lost or incomplete."""
        with Registry.open() as registry:
            problems = registry.verify()
            assert {problem.kind for problem in problems} <= {"orphan", "leftover"}, problems
            assert all("`codi gc` deletes it" in problem.message for problem in problems), problems
            rows = {row.ref: row for row in registry.adapters.list(base="tiny")}
            lost = {ref for ref, sure in self.versions.items() if sure} - rows.keys()
            assert not lost, f"reported as registered, and gone: {lost}"
            self.versions = {ref: True for ref in self.versions if ref in rows}
            for row in rows.values():
                assert {"adapter.safetensors", "adapter.json"} <= set(registry.adapters.files(row))
            lost = self.tasks - {task.name for task in registry.tasks.list()}
            assert not lost, f"reported as registered, and gone: {lost}"
        for path in (self.folder / "out").rglob("*.png"):
            with Image.open(path) as image:
                image.load()
                assert image.size == (16, 16)


def _exit_code(args: list[str]) -> int:
    sys.argv[1:] = args
    try:
        cli.main()
    except SystemExit as stopped:
        return int(stopped.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def soak(rounds: int, seed: int, folder: Path) -> Soak:
    """End commands in so many rounds with each signal; return the final state."""
    state = Soak(folder, random.Random(seed))
    state.prepare()
    for _ in range(rounds):
        for number in SIGNALS:
            state.round(number)
    return state


if __name__ == "__main__":
    rounds, seed = (int(value) for value in (sys.argv[1:] + ["200", "0"][len(sys.argv) - 1 :])[:2])
    with tempfile.TemporaryDirectory() as where:
        ended = soak(rounds, seed, Path(where))
    print("| command | signal | ended in the middle | had its result |\n|-|-|-:|-:|")
    for name in ended.typical:
        for number, text in SIGNALS.items():
            print(f"| `codi {name}` | {text} | {ended.kills[number, name]} | {ended.late[number, name]} |")
    print(f"| all | | {ended.kills.total()} | {ended.late.total()} |\n\nNothing that was reported was lost. "
          f"Images generated twice, because the signal came before their record: {ended.repeated}.")  # fmt: skip
