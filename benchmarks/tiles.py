"""Visibility of seams, and memory of tiled runs: `python -m benchmarks.tiles seams | memory [--side 8192]`.

seams: photographs of 160 px, enlarged four times, in tiles of 256 px and whole. Prints the mean pixel difference across
    tile borders over that of the whole image, and as a reference the same for tiles with independent noise and without
    blending, where seams are visible.
memory: generates an image of SIDE x SIDE pixels and prints its peak memory above the loaded model's.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from codi_hub import RunOptions
from codi_hub.data.photographs import photographs
from codi_hub.hub import Hub
from codi_hub.images.metrics import psnr
from codi_hub.inference import tiling as tiles
from codi_hub.inference.engine import Engine, Generated, Request

SCALE, SIDE, TILE = 4, 160, 256  # of superres; sides of inputs and tiles in px
generate = Engine.generate


def main() -> None:
    """Run one of the two measurements."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tiles", description=__doc__)
    parser.add_argument("what", choices=("seams", "memory"))
    parser.add_argument("--side", type=int, default=8192, help="of the output, px (default: 8192)")
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Hub.open() as hub:
        if arguments.what == "seams":
            seams(hub, Path(folder), arguments.steps)
        else:
            memory(hub, Path(folder), arguments.side, arguments.steps)


def run(hub: Hub, source: Path, out: Path, tile: str, steps: int) -> np.ndarray:
    """Return the output for one image."""
    report = hub.run("superres", [source], RunOptions(out=out, tile=tile, steps=steps, ext="png", overwrite=True))
    if report.failed:
        sys.exit(f"{source}: {report.items[0]['error']}")
    return np.asarray(Image.open(out / f"{source.stem}.png"))


def seams(hub: Hub, folder: Path, steps: int) -> None:
    """Print the differences at tile borders for three photographs."""
    print("| image | tiled : whole, dB | difference at borders, tiled / whole | without shared noise and blending |")
    print("|-|-:|-:|-:|")
    for photo in photographs(count=3):
        source = folder / f"{photo.name}.png"
        Image.fromarray(photo.image).resize((SIDE, SIDE), Image.Resampling.BOX).save(source)
        whole, tiled = (run(hub, source, folder / tile, tile, steps) for tile in ("off", str(TILE)))
        with mock.patch.object(tiles, "weights", side_by_side), mock.patch.object(Engine, "generate", own_noise):
            cut = run(hub, source, folder / "cut", str(TILE), steps)
        shares = " | ".join(f"{at_seams(image) / at_seams(whole):.3f}" for image in (tiled, cut))
        print(f"| {photo.name} | {psnr(tiled, whole):.2f} | {shares} |", flush=True)


def side_by_side(parts: list[slice], length: int, overlap: int) -> list[np.ndarray]:
    """Return weights of 0 and 1: every tile up to the start of the next."""
    ends = [part.start for part in parts[1:]] + [length]
    return [(np.arange(p.start, p.stop) < end).astype(np.float32) for p, end in zip(parts, ends, strict=True)]


def own_noise(engine: Engine, requests: Sequence[Request], *sampling: Any, **options: Any) -> Generated:
    """Generate tiles with independent noise: each with a seed of its own."""
    alone = [
        replace(one, window=None, seed=one.seed + 31 * one.window.top + one.window.left) if one.window else one
        for one in requests
    ]
    return generate(engine, alone, *sampling, **options)


def at_seams(image: np.ndarray) -> float:
    """Return the mean absolute pixel difference across the lines where tiles start or end."""
    found = []
    for axis in (0, 1):
        parts = tiles.spans(image.shape[axis], TILE, tiles.Tiling(TILE, 0).overlap)
        lines = sorted({part.start - 1 for part in parts[1:]} | {part.stop - 1 for part in parts[:-1]})
        found.append(np.abs(np.diff(image.astype(np.float32), axis=axis)).take(lines, axis).mean())
    return float(np.mean(found))


def memory(hub: Hub, folder: Path, side: int, steps: int) -> None:
    """Print the peak memory of a large image."""
    image = Image.fromarray(photographs(count=1)[0].image)
    for name, width in (("small", 64), ("large", side // SCALE)):
        image.resize((width, width), Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    run(hub, folder / "small.png", folder / "out", "auto", steps)
    loaded = peak()
    began = time.perf_counter()
    report = hub.run("superres", [folder / "large.png"], RunOptions(out=folder / "out", steps=steps))
    seconds = time.perf_counter() - began
    if report.failed:
        sys.exit(report.items[0]["error"])
    print(f"{side}x{side} out, {steps} steps: {peak() - loaded:.0f} MB above the {loaded:.0f} MB of the loaded model, "
          f"{seconds:.0f} s")  # fmt: skip


def peak() -> float:
    """Return the peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1 << 20)


if __name__ == "__main__":
    main()
