"""Rebuild the bundled models from nothing: `python -m recipes.nano`. Each stage resumes where it was interrupted.

Stages: images -> autoencoder -> base -> pretraining (scene labels, for edit, depth and canny) -> one adapter per task
with `codi distill` -> features (the network of `codi eval`'s distances) -> bundle (into codi_hub/nano). On a CPU, one
adapter per core is trained at a time, which is 1.45 times as fast as one after the other on two cores; the stages
before use all cores.

With `--photos` the base is trained on photographs too, with `--start` from the weights of another base, whose
autoencoder and tokenizer it keeps: leave out the stage `autoencoder` then.

The bundled weights had more and longer trainings, some with the Muon optimiser and with mirror images of the pairs:
the lineage in each adapter's card lists them. This recipe builds the same networks on the same data in less time.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from codi_hub.backbones import load
from codi_hub.registry import Registry
from recipes.nano import autoencoder, base, bundle, features, pretraining
from recipes.nano.images import Images, photo_pool, pool
from recipes.nano.pretraining import Phase, Pretraining

LEAVES, SCENES, PHOTOGRAPHS = 6144, 6144, 8192


class Round(NamedTuple):
    """One training of an adapter: minutes on one core, and the overrides of the task's preset.

    The first starts from the pretraining or from the adapter in `AFTER`, each other from the round before it.
    """

    minutes: float
    overrides: tuple[str, ...] = ()


LARGER = ("data.size=128", "data.count=8000", "training.seed=1")
ROUNDS = {
    "superres": [Round(60.0)],
    "inpaint": [Round(40.0), Round(8.0)],
    "depth": [Round(9.0), Round(22.0, LARGER)],
    "edit": [
        Round(30.0, ("data.source=edits", "data.count=5000", "training.seed=1")),
        Round(115.0),
        Round(48.0, ("data.source=edits", "data.count=30000", "training.seed=3")),
    ],
    "canny": [Round(7.0), Round(22.0, LARGER)],
    "deblur": [Round(12.0)],
}
PRETRAININGS = {
    "edit": Pretraining(0.05, [Phase(29.0), Phase(80.0, (128,)), Phase(18.0, (128,), 1.5e-3, removals=0.6)]),
    "depth": Pretraining(0.2, [Phase(8.0)]),
    "canny": Pretraining(0.2, [Phase(5.5)]),
}
# task -> the task, or the pretraining, whose adapter its first round starts from
AFTER = {"deblur": "superres"} | {task: pretraining.run_name(task) for task in PRETRAININGS}
MINUTES = {
    "autoencoder": 9.0,
    "base": 70.0,
    "pretraining": sum(one.minutes for one in PRETRAININGS.values()),
    "features": 8.0,
}
MINUTES |= {task: sum(one.minutes for one in rounds) for task, rounds in ROUNDS.items()}
STAGES = ("images", "autoencoder", "base", "pretraining", *ROUNDS, "features", "bundle")


def codi(workspace: Path, *arguments: str, threads: int) -> dict[str, Any]:
    """Run the command in the workspace's own home, and return its JSON answer."""
    home = os.environ | {"CODI_HOME": str(workspace / "home"), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "codi_hub.cli", *arguments, "--json"]
    answer: dict[str, Any] = json.loads(subprocess.run(command, env=home, check=True, stdout=subprocess.PIPE).stdout)
    return answer


def register_base(workspace: Path) -> None:
    """Register the workspace's base as `nano`: the home is first opened without the bundle, which has that name too."""
    if (workspace / "home" / "registry.db").exists():
        return
    source = workspace / "base"
    mark = load(str(source)).fingerprint
    with Registry.open(workspace / "home", bundled=workspace / "nothing-bundled") as registry:
        registry.bases.add(bundle.BASE, source.absolute(), family=mark.family, sketch=mark.sketch)


def distil(workspace: Path, task: str, minutes: float, device: str, threads: int) -> None:
    """Train one adapter on the workspace's base, round by round, resuming an interrupted one."""
    print(f"== {task}", flush=True)
    parent = ""
    if task in AFTER:
        before = AFTER[task]
        last = bundle.run_folder(workspace, before, len(ROUNDS.get(before, [()])))
        parent = (last / bundle.DONE).read_text()
    scale = minutes / MINUTES[task]
    for number, one in enumerate(ROUNDS[task], 1):
        run = bundle.run_folder(workspace, task, number)
        done = run / bundle.DONE
        if not done.exists():
            arguments = ["--preset", task, "--base", bundle.BASE, "--run-dir", str(run), "--device", device]
            arguments += ["--cache-dir", str(workspace / "pairs"), "--time-budget", f"{one.minutes * scale:g}m"]
            arguments += [part for override in one.overrides for part in ("-O", override)]
            arguments += ["--from", parent] if parent else []
            arguments += ["--resume"] if (run / "config.yaml").exists() else []
            answer = codi(workspace, "distill", task, *arguments, threads=threads)
            done.write_text(answer["adapter"])
        parent = done.read_text()


def distil_all(workspace: Path, tasks: list[str], minutes: dict[str, float], device: str, lanes: int) -> None:
    """Train the adapters of several tasks, `lanes` of them at a time, the longest first."""
    threads = max(1, (os.cpu_count() or 1) // lanes)
    longest = sorted((task for task in tasks if AFTER.get(task) not in tasks), key=lambda task: -minutes[task])

    def one_by_one(first: str) -> None:
        for task in [first, *(task for task in tasks if AFTER.get(task) == first)]:
            distil(workspace, task, minutes[task], device, threads)

    with ThreadPoolExecutor(lanes) as executor:  # each thread waits for a process of its own
        list(executor.map(one_by_one, longest))


def pretrain(workspace: Path, minutes: float, device: str) -> None:
    """Run all pretrainings in the workspace's own home."""
    register_base(workspace)
    for task, one in PRETRAININGS.items():
        pretraining.run(workspace, task, one, minutes / MINUTES["pretraining"], device)


def main() -> None:
    """Run the stages named on the command line, or all."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.nano", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)} (default: all)")
    parser.add_argument("--workspace", type=Path, default=Path("build/nano"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--times", type=float, default=1.0, help="scale of all minutes below (default: 1)")
    parser.add_argument("--lanes", type=int, help="adapters at a time (default: one per core, one on a GPU)")
    parser.add_argument(
        "--photos", type=Path, metavar="DIR", help="photographs with a manifest.tsv, that the base is trained on too"
    )
    parser.add_argument(
        "--start", type=Path, metavar="BASE", help="folder of a base that the base's training starts from"
    )
    for stage, minutes in MINUTES.items():
        parser.add_argument(f"--{stage}-minutes", type=float, default=minutes, help="(default: %(default)s)")
    arguments = parser.parse_args()
    if unknown := set(arguments.stages) - set(STAGES):
        parser.error(f"no stage {', '.join(sorted(unknown))}; the stages are {', '.join(STAGES)}")
    workspace, device = arguments.workspace, arguments.device
    lanes = arguments.lanes or (1 if device == "cuda" else os.cpu_count() or 1)
    minutes = {stage: arguments.times * getattr(arguments, f"{stage}_minutes") for stage in MINUTES}
    scenes, captions = pool(workspace / "images", "scenes", SCENES, seed=2)
    leaves, _ = pool(workspace / "images", "leaves", LEAVES, seed=1)
    images = Images(scenes, captions, leaves)
    if arguments.photos:
        images = replace(images, photographs=photo_pool(workspace / "images", arguments.photos, PHOTOGRAPHS))
    run = {
        "images": lambda: None,  # rendered above, where they are missing
        "autoencoder": lambda: autoencoder.run(workspace, [leaves, leaves, scenes], minutes["autoencoder"], device),
        "base": lambda: base.run(workspace, images, minutes["base"], device, arguments.start),
        "pretraining": lambda: pretrain(workspace, minutes["pretraining"], device),
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
