"""Makes the bundled models from nothing: `python -m recipes.nano`. Each stage goes on where it was interrupted.

pictures -> autoencoder -> base -> words (its text encoder's) -> an adapter per task with `codi distill` itself ->
features (the network that `codi eval` measures distances in) -> bundle (into codi_hub/nano).
"""

import argparse
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from codi_hub.base import FrozenBase
from codi_hub.registry import Registry
from recipes.nano import autoencoder, base, bundle, features, words
from recipes.nano.pictures import pool

STAGES = ("pictures", "autoencoder", "base", "words", "superres", "depth", "inpaint", "edit", "features", "bundle")
LEAVES, SCENES = 4096, 3072
MINUTES = {"autoencoder": 26.0, "base": 60.0, "words": 2.0, "features": 8.0}
MINUTES |= {"superres": 48.0, "depth": 29.0, "inpaint": 30.0, "edit": 46.0}
FEW = ["--kind", "control", "--grid", "4"]  # the four times that 1, 2 and 4 steps use get all of a short training
SUPERRES = ["--set", "scale=4", "--data", "leaves+leaves+scenes", "--count", "6000", *FEW]
INPAINT = ["--data", "leaves+scenes", "--count", "4000", "--size", "96", *FEW]
WIDER = ["--data", "leaves+scenes", "--count", "3000", *FEW, "--rollout", "0.5"]
EDIT = ["--count", "4000", "--size", "96", *FEW]
# passes of (share of the minutes, what the command is told); each goes on from the adapter of the one before
PASSES = {
    "superres": [(0.45, SUPERRES), (0.55, [*SUPERRES, "--rollout", "0.7"])],
    "depth": [(0.4, FEW), (0.25, [*FEW, "--rollout", "0.5"]), (0.35, [*FEW, "--rollout", "0.5"])],
    "inpaint": [(0.33, INPAINT), (0.2, [*INPAINT, "--rollout", "0.5"]), (0.47, WIDER)],
    # first smaller scenes, of which a minute sees twice as many
    "edit": [(0.26, EDIT), (0.48, EDIT), (0.26, [*FEW, "--rollout", "0.5"])],
}


def codi(workspace: Path, *arguments: str) -> dict[str, Any]:
    """Runs the command in the workspace's own home, and gives back what it answers as JSON."""
    home = os.environ | {"CODI_HOME": str(workspace / "home")}
    command = [sys.executable, "-m", "codi_hub.cli", *arguments, "--json"]
    answer: dict[str, Any] = json.loads(subprocess.run(command, env=home, check=True, stdout=subprocess.PIPE).stdout)
    return answer


def register_base(workspace: Path) -> None:
    """The workspace's base under the bundled one's name: the home first opens without the bundle, which has it too."""
    source = workspace / "base"
    mark = FrozenBase.load(str(source)).fingerprint
    with Registry.open(workspace / "home", bundled=workspace / "nothing-bundled") as registry:
        registry.add_base(bundle.BASE, source.absolute(), family=mark.family, sketch=mark.sketch)


def distil(workspace: Path, task: str, minutes: float, device: str) -> None:
    """One adapter on the workspace's base, in its passes; resumed where they were interrupted."""
    if not (workspace / "home" / "registry.db").exists():
        register_base(workspace)
    parent: list[str] = []
    for number, (share, told) in enumerate(PASSES[task], 1):
        run = bundle.run_folder(workspace, task, number)
        done = run / bundle.DONE
        if not done.exists():
            arguments = ["--base", bundle.BASE, "--run-dir", str(run), "--pairs", str(workspace / "pairs")]
            arguments += ["--time-budget", f"{share * minutes:g}m", *parent]
            if (run / "run.json").exists():
                arguments.append("--resume")
            made = codi(workspace, "distill", task, *arguments, "--device", device, *told)
            done.write_text(made["adapter"])
        parent = ["--from", done.read_text()]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.nano", description=__doc__)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)} (default: all)")
    parser.add_argument("--workspace", type=Path, default=Path("build/nano"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    for stage, minutes in MINUTES.items():
        parser.add_argument(f"--{stage}-minutes", type=float, default=minutes, help="(default: %(default)s)")
    arguments = parser.parse_args()
    if unknown := set(arguments.stages) - set(STAGES):
        parser.error(f"no stage {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    workspace, device = arguments.workspace, arguments.device
    minutes = {stage: getattr(arguments, f"{stage}_minutes") for stage in MINUTES}
    scenes, captions = pool(workspace / "pictures", "scenes", SCENES, seed=2)
    leaves, _ = pool(workspace / "pictures", "leaves", LEAVES, seed=1)
    run = {
        "pictures": lambda: None,  # made above, where they are missing
        "autoencoder": lambda: autoencoder.run(workspace, [leaves, leaves, scenes], minutes["autoencoder"], device),
        "base": lambda: base.run(workspace, scenes, captions, leaves, minutes["base"], device),
        "words": lambda: words.run(workspace, captions, minutes["words"], device),
        **{task: partial(distil, workspace, task, minutes[task], device) for task in PASSES},
        "features": lambda: features.run(workspace, scenes, captions, leaves, minutes["features"], device),
        "bundle": lambda: bundle.run(workspace, {task: len(passes) for task, passes in PASSES.items()}),
    }
    for stage in arguments.stages or STAGES:
        print(f"== {stage}", flush=True)
        run[stage]()


if __name__ == "__main__":
    main()
