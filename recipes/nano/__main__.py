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
import math
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from codi_hub.backbones import load
from codi_hub.config.layers import merge, parse_override, read_preset
from codi_hub.config.values import Duration
from codi_hub.registry import Registry
from recipes.nano import autoencoder, base, bundle, features, pieces, pretraining
from recipes.nano.images import CHUNK, Images, photo_pool, pool, shard
from recipes.nano.pretraining import Phase, Pretraining

LEAVES, SCENES, PHOTOGRAPHS = 6144, 6144, 8192
FEWEST = 3 * CHUNK  # images of a pool, of which `features` holds 128 out
FEWEST_PAIRS = 64
STAGE = "stages"  # folder in a workspace: a file for each stage that is complete, with its minutes
CHECKPOINTS = {"autoencoder": "autoencoder", "base": "unet", "features": "feature-training"}  # folders by stage
CONTINUE = 75  # exit status: EX_TEMPFAIL, run it again
RESTORATION = ("superres", "inpaint", "deblur")  # tasks whose pairs are photographs too, where there are some
MIXED = 2048  # leaves, and scenes, beside the photographs of their pairs


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
    answer: dict[str, Any] = json.loads(pieces.output_of(command, home))
    return answer


def register_base(workspace: Path) -> None:
    """Register the workspace's base: the home is first opened without the bundle, which may have its name too."""
    if (workspace / "home" / "registry.db").exists():
        return
    source = workspace / "base"
    mark = load(str(source)).fingerprint
    with Registry.open(workspace / "home", bundled=workspace / "nothing-bundled") as registry:
        registry.bases.add(bundle.base_name(workspace), source.absolute(), family=mark.family, sketch=mark.sketch)


@dataclass(frozen=True)
class Data:
    """What the trainings read.

    Attributes:
        workspace: where images are written.
        photos: folder of photographs, if any.
        scale: of all numbers of images and pairs.
    """

    workspace: Path
    photos: Path | None = None
    scale: float = 1.0

    def scaled(self, count: int) -> int:
        """Return the number of images of a pool."""
        return max(FEWEST, math.ceil(self.scale * count / CHUNK) * CHUNK)

    @cached_property
    def images(self) -> Images:
        """The pools, rendered by all cores where they are missing."""
        folder, workers = self.workspace / "images", os.cpu_count() or 1
        scenes, captions = pool(folder, "scenes", self.scaled(SCENES), seed=2, workers=workers)
        leaves, _ = pool(folder, "leaves", self.scaled(LEAVES), seed=1, workers=workers)
        if self.photos is None:
            return Images(scenes, captions, leaves)
        return Images(scenes, captions, leaves, photo_pool(folder, self.photos, self.scaled(PHOTOGRAPHS)))

    def overrides(self, task: str, one: Round) -> list[str]:
        """Return the overrides of a task's preset in a round."""
        overrides = list(one.overrides)
        if self.photos and task in RESTORATION:
            pools = self.images
            mixed = [pools.photographs, pools.leaves[:MIXED], pools.scenes[:MIXED]]
            overrides.append(f"data.source={shard(self.workspace / 'images' / 'mixed.tar', mixed)}")
        if self.scale != 1:
            count = merge([read_preset(task), *map(parse_override, one.overrides)])["data"]["count"]
            overrides.append(f"data.count={max(FEWEST_PAIRS, round(self.scale * count))}")
        return overrides


def distil(data: Data, task: str, minutes: float, device: str, threads: int) -> None:
    """Train one adapter on the workspace's base, round by round, resuming an interrupted one."""
    print(f"== {task}", flush=True)
    workspace, parent = data.workspace, ""
    if task in AFTER:
        before = AFTER[task]
        last = bundle.run_folder(workspace, before, len(ROUNDS.get(before, [()])))
        parent = (last / bundle.DONE).read_text()
    scale = minutes / MINUTES[task]
    for number, one in enumerate(ROUNDS[task], 1):
        run = bundle.run_folder(workspace, task, number)
        done = run / bundle.DONE
        if not done.exists():
            arguments = [
                "--preset",
                task,
                "--base",
                bundle.base_name(workspace),
                "--run-dir",
                str(run),
                "--device",
                device,
            ]
            arguments += ["--cache-dir", str(workspace / "pairs"), "--time-budget", f"{one.minutes * scale:g}m"]
            arguments += [part for override in data.overrides(task, one) for part in ("-O", override)]
            arguments += ["--from", parent] if parent else []
            arguments += ["--resume"] if (run / "config.yaml").exists() else []
            answer = codi(workspace, "distill", task, *arguments, threads=threads)
            done.write_text(answer["adapter"])
        parent = done.read_text()


def distil_all(data: Data, tasks: list[str], minutes: dict[str, float], device: str, lanes: int) -> None:
    """Train the adapters of several tasks, `lanes` of them at a time, the longest first."""
    threads = max(1, (os.cpu_count() or 1) // lanes)
    longest = sorted((task for task in tasks if AFTER.get(task) not in tasks), key=lambda task: -minutes[task])

    def one_by_one(first: str) -> None:
        for task in [first, *(task for task in tasks if AFTER.get(task) == first)]:
            distil(data, task, minutes[task], device, threads)

    with ThreadPoolExecutor(lanes) as executor:  # each thread waits for a process of its own
        list(executor.map(one_by_one, longest))


def pretrain(data: Data, minutes: float, device: str) -> None:
    """Run all pretrainings in the workspace's own home, but those that it has already."""
    register_base(data.workspace)
    counts = {size: max(2 * pretraining.CHUNK, round(data.scale * n)) for size, n in pretraining.COUNTS.items()}
    for task, one in PRETRAININGS.items():
        if not (bundle.run_folder(data.workspace, pretraining.run_name(task), 1) / bundle.DONE).exists():
            pretraining.run(data.workspace, task, one, minutes / MINUTES["pretraining"], device, counts)


def finished_checkpoints(workspace: Path) -> list[Path]:
    """Return the checkpoints of trainings that are complete: nothing reads them but a longer training."""
    patterns = [
        f"{folder}/checkpoint.pt" for stage, folder in CHECKPOINTS.items() if (workspace / STAGE / stage).exists()
    ]
    for done in (workspace / "runs").glob(f"*/{bundle.DONE}"):
        patterns += [f"{done.parent.relative_to(workspace)}/checkpoint.*", f"{done.parent.name}/*/checkpoint.pt"]
    return [path for pattern in patterns for path in workspace.glob(pattern)]


def once(data: Data, stage: str, minutes: float, run: Callable[[], object]) -> None:
    """Run a stage, unless it was completed in the same time before."""
    done = data.workspace / STAGE / stage
    if done.exists() and done.read_text() == f"{minutes:g}":
        return
    print(f"== {stage}", flush=True)
    run()
    done.parent.mkdir(parents=True, exist_ok=True)
    done.write_text(f"{minutes:g}")


def run(arguments: argparse.Namespace) -> None:
    """Run stages one after the other, adapters side by side."""
    data, device = Data(arguments.workspace, arguments.photos, arguments.scale), arguments.device
    names = arguments.stages or list(STAGES)
    minutes = {stage: arguments.times * getattr(arguments, f"{stage}_minutes") for stage in MINUTES}
    if arguments.budget:
        share = arguments.budget / 60 / sum(minutes[stage] for stage in names if stage in MINUTES)
        minutes = {stage: share * value for stage, value in minutes.items()}

    def autoencode() -> None:
        images = data.images
        pools = [images.leaves, images.leaves, images.scenes]
        autoencoder.run(data.workspace, pools, minutes["autoencoder"], device)

    def measure() -> None:
        images = data.images
        features.run(data.workspace, images.scenes, images.captions, images.leaves, minutes["features"], device)

    calls: dict[str, Callable[[], object]] = {
        "images": lambda: data.images,
        "autoencoder": autoencode,
        "base": lambda: base.run(data.workspace, data.images, minutes["base"], device, arguments.start),
        "pretraining": lambda: pretrain(data, minutes["pretraining"], device),
        "features": measure,
        "bundle": lambda: bundle.run(data.workspace, {task: len(rounds) for task, rounds in ROUNDS.items()}),
    }
    for adapters, stages in groupby(names, key=ROUNDS.__contains__):
        if adapters:
            register_base(data.workspace)
            distil_all(data, list(stages), minutes, device, arguments.lanes)
            continue
        for stage in stages:
            pieces.check()
            once(data, stage, minutes.get(stage, 0.0), calls[stage])


def parsed() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.nano", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)} (default: all)")
    parser.add_argument("--workspace", type=Path, default=Path("build/nano"))
    parser.add_argument("--name", help="of the base (default: the workspace's, else nano)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--times", type=float, default=1.0, help="scale of all minutes below (default: 1)")
    parser.add_argument("--scale", type=float, default=1.0, help="scale of all numbers of images (default: 1)")
    parser.add_argument("--lanes", type=int, help="adapters at a time (default: one per core, one on a GPU)")
    parser.add_argument(
        "--photos", type=Path, metavar="DIR", help="photographs with a manifest.tsv, that are trained on too"
    )
    parser.add_argument(
        "--start", type=Path, metavar="BASE", help="folder of a base that the base's training starts from"
    )
    parser.add_argument(
        "--budget",
        type=TypeAdapter(Duration).validate_python,
        metavar="TIME",
        help="of all trainings together, in place of the minutes below: 25m",
    )
    parser.add_argument(
        "--piece",
        type=TypeAdapter(Duration).validate_python,
        metavar="TIME",
        help="stop after it, to be continued by the same command: 9m",
    )
    parser.add_argument(
        "--state", type=Path, metavar="DIR", help="where trainings are kept in files of at most 16 MiB between pieces"
    )
    for stage, minutes in MINUTES.items():
        parser.add_argument(f"--{stage}-minutes", type=float, default=minutes, help="(default: %(default)s)")
    arguments = parser.parse_args()
    if unknown := set(arguments.stages) - set(STAGES):
        parser.error(f"no stage {', '.join(sorted(unknown))}; the stages are {', '.join(STAGES)}")
    arguments.lanes = arguments.lanes or (1 if arguments.device == "cuda" else os.cpu_count() or 1)
    return arguments


def main() -> int:
    """Run the stages named on the command line, or all; return 0, or `CONTINUE` where a piece is over."""
    arguments = parsed()
    workspace, state = arguments.workspace, arguments.state
    if arguments.piece:
        pieces.stop_after(arguments.piece)
    if state:
        pieces.restore_state(state, workspace)
    if arguments.name:
        bundle.set_base_name(workspace, arguments.name)
    try:
        run(arguments)
    except pieces.PieceEnd:
        print("This piece is over: run the same command again to continue.", flush=True)
        return CONTINUE
    finally:
        if state and workspace.exists():
            files = pieces.save_state(workspace, state, finished_checkpoints(workspace))
            print(f"{state}: {len(files)} files, {sum(file.stat().st_size for file in files) / 1e6:.0f} MB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
