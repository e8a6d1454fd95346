"""Makes the bundled models from nothing: `python -m recipes.nano`. Each stage goes on where it was interrupted.

pictures -> autoencoder -> base -> an adapter per task with `codi distill` itself -> features (the network that
`codi eval` measures distances in) -> bundle (into codi_hub/nano). On a CPU, adapters are distilled side by side, one on
each core, which gains 1.45 times over one after the other on both; the stages before use all cores by themselves.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from codi_hub.backbones.unet import FrozenBase
from codi_hub.registry import Registry
from recipes.nano import autoencoder, base, bundle, features, sight
from recipes.nano.pictures import pool
from recipes.nano.sight import Pass, Sight

LEAVES, SCENES = 6144, 6144
BOTH = ["--set", "both=true"]
MIXED = ["--data", "leaves+leaves+scenes", "--size", "96"]
HALF_NOISE = ["--start-noise", "0.5"]
# the four times that 1, 2 and 4 steps use get all of a short training
FILLED = [*MIXED, "--count", "4000", "--grid", "4", "--rollout", "0.5"]
# What needs no invention begins with the input itself, without noise, and walks a straight line from there: two points
# of it are enough, and the sampler's own states all that is seen.
SIDE = ["--kind", "side"]
STRAIGHT = ["--rollout", "1", "--grid", "2", "--no-consistency"]
SHARPER = [*MIXED, *STRAIGHT]
MUON = ["--optimizer", "muon", "--lr"]
TOLD = [*STRAIGHT, *MUON, "1e-3", "--size"]
SEEN = [*TOLD, "96", "--count", "4000"]
LARGER = [*TOLD, "128", "--count", "8000", "--seed", "1"]
# A few thousand pairs are learnt by heart: after 12,000 seen seven times, a recolouring lacks a fifth of its change on
# those and a third on others
INSTRUCTED = ["--size", "128", *STRAIGHT, "--guidance", "relative", *MUON]
REMOVALS = ["--data", "edits+edits+removals", "--count", "12000", "--seed", "2"]
MANY = ["--count", "30000", "--seed", "3"]
TURNED = ["--data", "edits+edits+edits+removals", "--mirror", "--batch", "32"]


class Round(NamedTuple):
    """A training of so many minutes, and what the command is told.

    It goes on from the adapter of the round before it, whose start it keeps, or from the mean of so many before it.
    """

    minutes: float
    told: list[str]
    mean_of: int = 1


# what begins with a mean hardly moves: it measures that mean
ROUNDS = {
    "superres": [Round(60.0, [*SIDE, *BOTH, "--start", "0.1", *SHARPER, "--count", "12000", "--lr", "1e-3"])],
    "inpaint": [Round(40.0, ["--start", "0.3", *HALF_NOISE, *FILLED]), Round(8.0, FILLED)],
    "depth": [Round(9.0, SEEN), Round(22.0, LARGER)],
    "edit": [
        Round(15.0, [*INSTRUCTED, "7e-4", "--count", "5000"]),
        Round(15.0, [*INSTRUCTED, "1e-3", "--count", "5000", "--seed", "1"]),
        Round(115.0, [*INSTRUCTED, "1e-3", *REMOVALS]),
        Round(48.0, [*INSTRUCTED, "1e-3", *MANY]),
        Round(1.0, [*INSTRUCTED, "1e-5", *MANY], mean_of=3),
        Round(82.0, [*INSTRUCTED, "1e-3", *TURNED, "--count", "50000", "--seed", "4"]),
        Round(36.0, [*INSTRUCTED, "1e-3", *TURNED, "--count", "25000", "--seed", "5"]),
        Round(2.0, [*INSTRUCTED, "1e-5", *TURNED, "--count", "25000", "--seed", "5"], mean_of=3),
    ],
    "canny": [Round(7.0, SEEN), Round(22.0, LARGER)],
    "deblur": [Round(12.0, [*SHARPER, "--count", "6000", "--lr", "6e-4"])],
}
SIGHTS = {
    "edit": Sight(0.05, [Pass(29.0), Pass(80.0, (128,)), Pass(18.0, (128,), 1.5e-3, removals=0.6)]),
    "depth": Sight(0.2, [Pass(8.0)]),
    "canny": Sight(0.2, [Pass(5.5)]),
}
# whose adapter it goes on from
AFTER = {"deblur": "superres"} | {task: f"sight-{task}" for task in SIGHTS}
MINUTES = {"autoencoder": 9.0, "base": 70.0, "sight": sum(one.minutes for one in SIGHTS.values()), "features": 8.0}
MINUTES |= {task: sum(one.minutes for one in rounds) for task, rounds in ROUNDS.items()}
STAGES = ("pictures", "autoencoder", "base", "sight", *ROUNDS, "features", "bundle")


def codi(workspace: Path, *arguments: str, threads: int) -> dict[str, Any]:
    """Runs the command in the workspace's own home, and gives back what it answers as JSON."""
    home = os.environ | {"CODI_HOME": str(workspace / "home"), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "codi_hub.cli", *arguments, "--json"]
    answer: dict[str, Any] = json.loads(subprocess.run(command, env=home, check=True, stdout=subprocess.PIPE).stdout)
    return answer


def register_base(workspace: Path) -> None:
    """The workspace's base under the bundled one's name: the home first opens without the bundle, which has it too."""
    if (workspace / "home" / "registry.db").exists():
        return
    source = workspace / "base"
    mark = FrozenBase.load(str(source)).fingerprint
    with Registry.open(workspace / "home", bundled=workspace / "nothing-bundled") as registry:
        registry.bases.add(bundle.BASE, source.absolute(), family=mark.family, sketch=mark.sketch)


def distil(workspace: Path, task: str, minutes: float, device: str, threads: int) -> None:
    """One adapter on the workspace's base, in its rounds; resumed where they were interrupted."""
    print(f"== {task}", flush=True)
    made: list[str] = []
    if task in AFTER:
        before = AFTER[task]
        last = bundle.run_folder(workspace, before, len(ROUNDS.get(before, [()])))
        made.append((last / bundle.DONE).read_text())
    times = minutes / MINUTES[task]
    for number, one in enumerate(ROUNDS[task], 1):
        run = bundle.run_folder(workspace, task, number)
        done = run / bundle.DONE
        if not done.exists():
            arguments = ["--base", bundle.BASE, "--run-dir", str(run), "--pairs", str(workspace / "pairs")]
            arguments += ["--time-budget", f"{one.minutes * times:g}m"]
            if one.mean_of > 1:
                arguments += ["--from", bundle.mean(workspace, task, made[-one.mean_of :])]
            elif made:
                arguments += ["--from", made[-1]]
            if (run / "run.json").exists():
                arguments.append("--resume")
            answer = codi(workspace, "distill", task, *arguments, "--device", device, *one.told, threads=threads)
            done.write_text(answer["adapter"])
        made.append(done.read_text())


def distil_all(workspace: Path, tasks: list[str], minutes: dict[str, float], device: str, lanes: int) -> None:
    """Adapters of several tasks, `lanes` of them at a time, the longest first."""
    threads = max(1, (os.cpu_count() or 1) // lanes)
    longest = sorted((task for task in tasks if AFTER.get(task) not in tasks), key=lambda task: -minutes[task])

    def one_by_one(first: str) -> None:
        for task in [first, *(task for task in tasks if AFTER.get(task) == first)]:
            distil(workspace, task, minutes[task], device, threads)

    with ThreadPoolExecutor(lanes) as executor:  # each waits for a process of its own
        list(executor.map(one_by_one, longest))


def see(workspace: Path, minutes: float, device: str) -> None:
    """What comes before the adapters that are told about things, in the workspace's own home."""
    register_base(workspace)
    for task, one in SIGHTS.items():
        sight.run(workspace, task, one, minutes / MINUTES["sight"], device)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.nano", description=__doc__)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)} (default: all)")
    parser.add_argument("--workspace", type=Path, default=Path("build/nano"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--times", type=float, default=1.0, help="all minutes below, times this (default: 1)")
    parser.add_argument("--lanes", type=int, help="adapters at a time (default: one for each core, one on a GPU)")
    for stage, minutes in MINUTES.items():
        parser.add_argument(f"--{stage}-minutes", type=float, default=minutes, help="(default: %(default)s)")
    arguments = parser.parse_args()
    if unknown := set(arguments.stages) - set(STAGES):
        parser.error(f"no stage {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    workspace, device = arguments.workspace, arguments.device
    lanes = arguments.lanes or (1 if device == "cuda" else os.cpu_count() or 1)
    minutes = {stage: arguments.times * getattr(arguments, f"{stage}_minutes") for stage in MINUTES}
    scenes, captions = pool(workspace / "pictures", "scenes", SCENES, seed=2)
    leaves, _ = pool(workspace / "pictures", "leaves", LEAVES, seed=1)
    run = {
        "pictures": lambda: None,  # made above, where they are missing
        "autoencoder": lambda: autoencoder.run(workspace, [leaves, leaves, scenes], minutes["autoencoder"], device),
        "base": lambda: base.run(workspace, scenes, captions, leaves, minutes["base"], device),
        "sight": lambda: see(workspace, minutes["sight"], device),
        "features": lambda: features.run(workspace, scenes, captions, leaves, minutes["features"], device),
        "bundle": lambda: bundle.run(workspace, {task: len(rounds) for task, rounds in ROUNDS.items()}),
    }
    for adapters, stages in groupby(arguments.stages or STAGES, key=ROUNDS.__contains__):
        if adapters:
            register_base(workspace)
            distil_all(workspace, list(stages), minutes, device, lanes)
            continue
        for stage in stages:
            print(f"== {stage}", flush=True)
            run[stage]()


if __name__ == "__main__":
    main()
