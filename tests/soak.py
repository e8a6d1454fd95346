"""Commands killed at random moments, and what is left of them: `make soak`, or `python tests/soak.py [ROUNDS] [SEED]`.

Every command runs in a forked child, so that starting Python takes none of the time in which it can be killed. After
each kill the home is looked at: what a command has reported is there and whole, `codi verify` finds nothing but what
it says `codi gc` deletes, no picture is half-written, and what was interrupted can be gone on with.
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
PICTURES = 4
SLOWEST = 120.0  # seconds after which a command counts as hung


@dataclass
class Answer:
    """What a command left; `code` is None where it was killed."""

    code: int | None
    out: str
    err: str
    seconds: float

    @property
    def report(self) -> Any:
        return json.loads(self.out)


@dataclass
class Soak:
    """A home, what has been reported to its user, and the kills so far.

    Attributes:
        versions: reference -> whether it is sure to be there; one whose removal was killed may be or not.
        tasks: those reported as registered.
        begun: arguments of killed distillations and runs.
        typical: command -> seconds that it took when nobody killed it.
        again: pictures that lay there whole and were made again, since the kill came before their record.
        kills: command -> how many were killed in the middle; `late`: how many had ended before.
    """

    folder: Path
    chance: random.Random
    versions: dict[str, bool] = field(default_factory=dict)
    tasks: set[str] = field(default_factory=set)
    begun: list[tuple[str, list[str]]] = field(default_factory=list)
    typical: dict[str, float] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)
    late: Counter[str] = field(default_factory=Counter)
    again: int = 0
    made: int = 0

    def prepare(self) -> None:
        """A base, pictures, and every command once without a kill."""
        os.environ["CODI_HOME"] = str(self.folder / "home")
        if (maker := os.fork()) == 0:  # torch computes in children only: what it sets up for that survives no fork
            try:
                save_base(self.folder / "base", scheduler_config("v_prediction", zero_snr=True))
                os._exit(0)
            finally:
                os._exit(70)
        assert os.waitpid(maker, 0)[1] == 0
        (self.folder / "in").mkdir()
        for k in range(PICTURES):
            pixels = np.random.default_rng(k).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(self.folder / "in" / f"{k}.png")
        assert self.codi("base", "add", "tiny", str(self.folder / "base")).code == 0
        for name in ("distill", "distill", "task add", "tag", "cp", "run", "rm", "gc"):
            answer = self.one(name, kill=False)
            assert answer.code == 0, answer.err
            self.typical[name] = answer.seconds
        self.look()

    def codi(self, *args: str, kill_after: float = SLOWEST) -> Answer:
        """Runs a command in a child, and kills it with -9 after so many seconds."""
        began = time.monotonic()
        streams = [self.folder / name for name in ("stdout", "stderr")]
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
            os.kill(child, signal.SIGKILL)
            ended = os.waitpid(child, 0)
        code = os.WEXITSTATUS(ended[1]) if in_time else None
        return Answer(code, *(stream.read_text() for stream in streams), seconds)

    def one(self, name: str, *, kill: bool = True) -> Answer:
        """Runs a command once, killed at a random moment or not, and keeps account of what it reported."""
        args = self.arguments(name)
        after = self.chance.uniform(0, 1.05 * self.typical[name]) if kill else SLOWEST
        answer = self.codi(*name.split(), *args, kill_after=after)
        if kill:
            (self.kills if answer.code is None else self.late)[name] += 1
        assert answer.code in (0, None), f"codi {name} {' '.join(args)}: {answer.err}"
        done = answer.code == 0
        if name in ("distill", "cp") and done:
            self.versions[answer.report["adapter" if name == "distill" else "ref"]] = True
        elif name in ("distill", "run") and not done:
            self.begun.append((name, args))
        elif name == "task add" and done:
            self.tasks.add(args[0])
        elif name == "rm" and done:
            del self.versions[args[0]]
        elif name == "rm":
            self.versions[args[0]] = False
        return answer

    def arguments(self, name: str) -> list[str]:
        """Of the next command of that name."""
        self.made += 1
        sure = [ref for ref, there in self.versions.items() if there]
        some = self.chance.choice(sure) if sure else ""
        base = ["--base", "tiny"]
        if name == "distill":
            return ["depth", *SMALL, "--run-dir", str(self.folder / f"run-{self.made}"), "--json"]
        if name == "task add":
            return [f"task{self.made}", "--like", "superres", "--scale", "2"]
        if name == "tag":
            return [some, f"tag{self.made % 5}", *base]
        if name == "cp":
            like = f"copy{self.made}"
            assert self.codi("task", "add", like, "--like", "depth").code == 0
            return [some, like, *base, "--json"]
        if name == "rm":
            return [some, *base]
        if name == "run":
            out = self.folder / "out" / str(self.made)
            return [some, str(self.folder / "in"), "-o", str(out), "--steps", "1", "--device", "cpu", *base]
        return []

    def round(self) -> None:
        """One kill and a look at what it left; where too little is left to go on with, something is made first."""
        if sum(self.versions.values()) < 3:
            self.one("distill", kill=False)
        name = self.chance.choice(["distill", "distill", "run", "run", "task add", "tag", "cp", "rm", "gc"])
        self.one(name)
        self.look()
        if self.chance.random() < 0.1:
            assert self.codi("gc").code == 0
            with Registry.open() as registry:
                assert registry.verify() == []
        if self.begun and self.chance.random() < 0.3:
            self.go_on(*self.begun.pop())

    def go_on(self, name: str, args: list[str]) -> None:
        """What was killed is done: a distillation from its last checkpoint, if it has one; of a run what is missing."""
        if name == "distill":
            folder = Path(args[args.index("--run-dir") + 1])
            there = (folder / "checkpoint.safetensors").exists()
            answer = self.codi(name, *args, *["--resume"] * (folder / "config.yaml").exists())
            assert answer.code == 0, answer.err
            assert ("Going on from step" in answer.err) == there, answer.err
            self.versions[answer.report["adapter"]] = True
        elif self.versions.get(args[0]):
            out = args[args.index("-o") + 1]
            lying = len(list(Path(out).glob("*.png")))
            with Registry.open() as registry:
                rows = [row for run in registry.runs.list(limit=None) for row in registry.runs.items(run.id)]
            recorded = sum(row.status == "ok" and str(row.output).startswith(f"{out}/") for row in rows)
            report = self.codi(name, *args, "--json").report
            assert (report["ok"] + report["skipped"], report["failed"]) == (PICTURES, 0)
            assert report["skipped"] == recorded
            self.again += lying - recorded

    def look(self) -> None:
        """Raises AssertionError where anything was lost or left half done."""
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
    try:
        cli.main(args)
    except SystemExit as stopped:
        return int(stopped.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def soak(rounds: int, seed: int, folder: Path) -> Soak:
    """That many kills, and what they left."""
    state = Soak(folder, random.Random(seed))
    state.prepare()
    for _ in range(rounds):
        state.round()
    return state


if __name__ == "__main__":
    rounds, seed = (int(value) for value in (sys.argv[1:] + ["200", "0"][len(sys.argv) - 1 :])[:2])
    with tempfile.TemporaryDirectory() as where:
        ended = soak(rounds, seed, Path(where))
    print("| command | killed in the middle | ended before the kill |\n|-|-:|-:|")
    for name in ended.typical:
        print(f"| `codi {name}` | {ended.kills[name]} | {ended.late[name]} |")
    print(f"| all | {ended.kills.total()} | {ended.late.total()} |\n\nNothing that was reported was lost. "
          f"Pictures made twice, the kill having come before their record: {ended.again}.")  # fmt: skip
