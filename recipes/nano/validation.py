"""Measure bases on photographs held out from their training: `python -m recipes.nano.validation BASE... --photos DIR`.

Prints each base's v-loss on the same crops, times and noise, with the empty prompt, in total and by noise level. Bases
that share an autoencoder can be compared, others cannot: the loss is one of latents.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from codi_hub.backbones import load
from codi_hub.backbones.backbone import Backbone
from recipes.nano.base import encode
from recipes.nano.images import photo_pool
from recipes.nano.kernels import training_precision

CROPS = 256
BATCH = 32
LEVELS = (0.125, 0.375, 0.625, 0.875)  # times, the middles of quarters


@torch.no_grad()
def validation_losses(base: Backbone, latents: Tensor) -> dict[str, float]:
    """Return E ||v - v_hat||^2 at each of `LEVELS`, and their mean.

    Args:
        base: a base that predicts v.
        latents: clean latents of held-out crops, (N, C, h, w).
    """
    generator, sums = torch.Generator().manual_seed(0), np.zeros(len(LEVELS))
    for x in latents.float().to(base.device).split(BATCH):
        for number, level in enumerate(LEVELS):
            t = base.schedule.time_of(torch.full((len(x),), level)).to(base.device)
            eps = torch.randn(x.shape, generator=generator).to(x)
            with training_precision(base.device.type):
                v = base.predict(base.schedule.add_noise(x, eps, t), t, base.embed([""] * len(x)))
            sums[number] += float((v.float() - base.schedule.prediction(x, eps, t)).square().mean()) * len(x)
    means = dict(zip(LEVELS, (sums / len(latents)).tolist(), strict=True))
    return {"mean": sum(means.values()) / len(means)} | {f"t = {level}": mean for level, mean in means.items()}


def main() -> None:
    """Print the losses of the bases named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.nano.validation", description=__doc__)
    parser.add_argument("bases", nargs="+", type=Path, metavar="BASE", help="folder of a base")
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR", help="photographs with a manifest.tsv")
    parser.add_argument("--workspace", type=Path, default=Path("build/nano"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    crops = photo_pool(arguments.workspace / "images", arguments.photos, CROPS, held_out=True)
    for folder in arguments.bases:
        base = load(str(folder), device=arguments.device)
        losses = validation_losses(base, encode(base.vae, crops, arguments.device))
        print(f"{folder}: " + ", ".join(f"{name} {value:.4f}" for name, value in losses.items()), flush=True)


if __name__ == "__main__":
    main()
