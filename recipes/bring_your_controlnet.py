"""Bring a ControlNet, make it four-step, on nano: `python -m recipes.bring_your_controlnet`.

For every seed a ControlNet for depth maps is trained as diffusers' scripts train one (method `conditional`: the
diffusion loss, for sampling in 50 steps), written as a file of diffusers with a stem of three channels, and imported.
The version is then distilled by each method for a tenth of that training's time (`--share`), and all are measured on
held-out scenes with the same noise. Printed are the distances at 4 steps, of the ControlNet as it came and of its
few-step versions, relative to the ControlNet's own at 50 steps.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from codi_hub import Hub, ImportOptions
from codi_hub.evaluation.features import load_features
from codi_hub.inference.engine import generate_function
from recipes.paper.held_out import HeldOut

TASK = "depth"
# Methods, and the time of a training step relative to one of `conditional`; of the last two on kind `full`. All were
# timed side by side by `recipes.paper` (docs/results/paper.json, "costs"): other work on the machine changes no ratio.
METHODS = {"pe-codi": 1.40, "cm": 1.61, "gd": 1.58}
ITSELF = "as it came"  # the ControlNet in the table
FIGURES = ("frechet", "perceptual")
FEW, MANY = 4, 50
STEPS = (1, 2, FEW, 8, MANY)
STEM = "controlnet_cond_embedding.conv_in.weight"
DATA = {"source": "scenes", "count": 1500, "size": 64}


def trained(hub: Hub, seed: int, steps: int, cache: Path, method: str, parent: str | None = None) -> dict[str, Any]:
    """Train an adapter; return its reference, optimiser steps and seconds."""
    config: dict[str, Any] = {
        "data": DATA | {"cache_dir": cache},
        "adapter": {"parent": parent} if parent else {"kind": "control"},
        "loss": {"method": method} | ({} if method in ("conditional", "gd") else {"grid": FEW}),
        "training": {"train_steps": steps, "batch": 16, "lr": 6e-4, "seed": seed, "sample_every": 0},
    }
    result = hub.distill(TASK, config)
    return {"adapter": result.adapter, "steps": result.steps, "seconds": round(result.seconds, 1)}


def as_foreign(hub: Hub, ref: str, file: Path) -> Path:
    """Write an adapter's encoder as another tool would have trained it, with three channels of condition."""
    encoder = hub.use(ref, device="cpu", dtype="fp32").adapter.encoder
    tensors = {name: value.contiguous() for name, value in encoder.state_dict().items()}
    if tensors[STEM].shape[1] == 1:  # of a gray image, every channel is the map
        tensors[STEM] = (tensors[STEM] / 3).repeat(1, 3, 1, 1)
    save_file(tensors, file)
    return file


def measured(hub: Hub, versions: dict[str, str], count: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return the distances of versions, by names, at every number of steps: name -> steps -> figure.

    On the first `count` of the held-out pairs of `recipes.paper`, of the training's size. The few-step versions are
    measured at the few steps alone.
    """
    held_out = HeldOut.of(TASK)
    held_out, features = replace(held_out, pairs=held_out.pairs[:count]), load_features()
    assert features is not None  # they are bundled
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, ref in versions.items():
        base, adapter, _ = hub.use(ref, device="cpu")
        generate = generate_function(base, adapter)
        for steps in STEPS if name == ITSELF else (FEW,):
            figures = held_out.figures(held_out.sampled(generate, steps)[0], features)
            found.setdefault(name, {})[str(steps)] = {one: round(figures[one], 4) for one in FIGURES}
    return found


def one_seed(folder: Path, seed: int, steps: int, share: float, count: int) -> dict[str, Any]:
    """Train, import, distil and measure; return what was done and the figures."""
    with Hub.open(folder / "home", base="nano") as hub:
        teacher = trained(hub, seed, steps, folder / "pairs", "conditional")
        file = as_foreign(hub, teacher["adapter"], folder / f"control-{seed}.safetensors")
        imported = hub.import_controlnet(file, ImportOptions(task=TASK, name=f"imported-{seed}")).adapter
        students = {
            method: trained(hub, seed, max(1, round(share * steps / cost)), folder / "pairs", method, imported)
            for method, cost in METHODS.items()
        }
        versions = {ITSELF: imported} | {method: student["adapter"] for method, student in students.items()}
        return {"controlnet": teacher, "distilled": students, "figures": measured(hub, versions, count)}


def ratios(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Return distances at 4 steps over the ControlNet's own at 50: name -> figure -> one per seed."""
    names = runs[0]["figures"]
    return {
        name: {
            figure: [run["figures"][name][str(FEW)][figure] / run["figures"][ITSELF][str(MANY)][figure] for run in runs]
            for figure in FIGURES
        }
        for name in names
    }


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Return the means over seeds as Markdown, and the ratios with their range."""
    found = ratios(runs)
    steps = [str(one) for one in STEPS]
    lines = [["", "figure", *(f"{one} steps" for one in steps), f"{FEW} / own {MANY}"], ["-", "-", *["-:"] * 6]]
    for name, figures in found.items():
        for figure, values in figures.items():
            rows = [[run["figures"][name].get(one, {}).get(figure) for run in runs] for one in steps]
            means = [f"{sum(row) / len(row):.4g}" if None not in row else "-" for row in rows]
            mean = f"{sum(values) / len(values):.2f} ({min(values):.2f}-{max(values):.2f})"
            lines.append([name, figure, *means, mean])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Run all seeds and print the table; `--out` keeps the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=400, help="training steps of the ControlNet")
    parser.add_argument("--share", type=float, default=0.1, help="of its training time, for distilling it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", type=int, default=128, help="held-out pairs, 256 at most")
    parser.add_argument("--out", type=Path, help="JSON file of the figures, which a second run continues")
    told = parser.parse_args()
    torch.set_num_threads(1)
    runs: list[dict[str, Any]] = json.loads(told.out.read_text()) if told.out and told.out.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(len(runs), told.seeds):
            runs.append(one_seed(Path(folder), seed, told.steps, told.share, told.count))
            if told.out:
                told.out.write_text(json.dumps(runs, indent=1) + "\n")
    print(table(runs))


if __name__ == "__main__":
    main()
