"""Makes the bundled models from nothing: `python -m recipes.nano`. Each stage goes on where it was interrupted.

pictures -> autoencoder -> base -> superres and depth with `codi distill` itself -> features (the network that `codi
eval` measures distances in) -> bundle (into codi_hub/nano).
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from recipes.nano import autoencoder, base, bundle, features
from recipes.nano.pictures import pool

STAGES = ("pictures", "autoencoder", "base", "superres", "depth", "features", "bundle")
LEAVES, SCENES = 4096, 3072
MINUTES = {"autoencoder": 26.0, "base": 16.0, "superres": 28.0, "depth": 10.0, "features": 8.0}
DISTIL = {  # what the adapters are told beside their time
    "superres": ["--set", "scale=4"],
    "depth": [],
}


def codi(workspace: Path, *arguments: str) -> None:
    """Runs the command in the workspace's own home."""
    home = os.environ | {"CODI_HOME": str(workspace / "home")}
    subprocess.run([sys.executable, "-m", "codi_hub.cli", *arguments], env=home, check=True)


def distil(workspace: Path, task: str, minutes: float, device: str) -> None:
    """One adapter on the workspace's base, resumed if its run has begun."""
    run = workspace / "runs" / task
    if not (workspace / "home" / "registry.db").exists():
        codi(workspace, "base", "add", bundle.BASE, str(workspace / "base"))
        codi(workspace, "base", "use", bundle.BASE)
    resume = ["--resume"] if (run / "run.json").exists() else []
    length = ["--time-budget", f"{minutes:g}m", "--device", device]
    codi(workspace, "distill", task, "--base", bundle.BASE, "--run-dir", str(run), *length, *DISTIL[task], *resume)


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
        "superres": lambda: distil(workspace, "superres", minutes["superres"], device),
        "depth": lambda: distil(workspace, "depth", minutes["depth"], device),
        "features": lambda: features.run(workspace, scenes, captions, leaves, minutes["features"], device),
        "bundle": lambda: bundle.run(workspace),
    }
    for stage in arguments.stages or STAGES:
        print(f"== {stage}", flush=True)
        run[stage]()


if __name__ == "__main__":
    main()
