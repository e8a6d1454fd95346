"""Adapters beside other networks and fills on photographs: `python -m benchmarks.quality`.

Measured on scikit-image's photographs, on which nothing bundled was trained: super-resolution of clean and of degraded
inputs, and inpainting. The networks of `benchmarks.outside` get the inputs that `codi eval` saves, and their outputs
are measured by `codi eval --against`. Seconds are CPU seconds of one thread per image, without loading, all in one
process. Writes docs/results/peers.json; prints the tables of docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import outside
from codi_hub import EvalOptions, Hub
from codi_hub.data.photographs import photographs
from codi_hub.evaluation.context import step_name

RESULTS = Path(__file__).parent.parent / "docs" / "results"
STEPS = (1, 4)
COLUMNS = {"psnr": "PSNR dB", "ssim": "SSIM", "st-lpips": "ST-LPIPS", "frechet-imagenet": "Frechet-ImageNet"}
HOLE = {"hole_psnr": "hole dB", "seam": "seam"}


def clean_pairs(folder: Path) -> Path:
    """Write the photographs and their bicubic reductions in the layout of test sets for super-resolution."""
    for name in ("test_HR", "test_LR"):
        (folder / name).mkdir(parents=True)
    for photo in photographs():
        image = Image.fromarray(photo.image)
        image.save(folder / "test_HR" / f"{photo.name}.png")
        small = (image.width // outside.SCALE, image.height // outside.SCALE)
        image.resize(small, Image.Resampling.BICUBIC).save(folder / "test_LR" / f"{photo.name}.png")
    return folder


def processed(make: Callable[[Path], np.ndarray], inputs: Path, out: Path) -> float:
    """Write an output for each input; return the CPU seconds per image."""
    out.mkdir(parents=True)
    files, seconds = sorted(inputs.iterdir()), 0.0
    for file in files:
        begun = time.process_time()
        image = make(file)
        seconds += time.process_time() - begun
        Image.fromarray(image).save(out / file.name)
    return seconds / len(files)


def upscaled(network: outside.Upscale) -> Callable[[Path], np.ndarray]:
    return lambda file: network(np.asarray(Image.open(file).convert("RGB")))


def filled(fill: outside.Fill) -> Callable[[Path], np.ndarray]:
    def make(file: Path) -> np.ndarray:
        mask = np.asarray(Image.open(file.parent.parent / "masks" / file.name))
        return fill(np.asarray(Image.open(file).convert("RGB")), mask == 255)

    return make


def generated(hub: Hub, task: str, steps: int) -> Callable[[Path], np.ndarray]:
    hub.use(task, device="cpu")
    return lambda file: np.asarray(hub.generate(task, [Image.open(file)], steps=steps, device="cpu")[0].convert("RGB"))


def measured(hub: Hub, task: str, work: Path, options: dict[str, Any], makers: dict[str, Any]) -> dict[str, Any]:
    """Return the rows of a table: the adapter, its baselines, and each of `makers` on the same inputs."""
    options = options | {"steps": STEPS, "device": "cpu", "metrics": ("st-lpips", "frechet-imagenet")}
    hub.evaluate(task, EvalOptions(**options, save_images=work))
    seconds = {name: processed(load(), work / "inputs", work / "peers" / name) for name, load in makers.items()}
    for count in STEPS:
        seconds[step_name(count)] = processed(generated(hub, task, count), work / "inputs", work / "ours" / str(count))
    against = tuple(f"{name}={work / 'peers' / name}" for name in makers)
    report = hub.evaluate(task, EvalOptions(**options, against=against, out=work / "report"))
    rows = [row | {"seconds": seconds.get(row["name"])} for row in report.rows]
    return {"adapter": report.adapter, "images": report.images, "rows": rows, "notes": report.notes}


def table(title: str, found: dict[str, Any]) -> str:
    """Return one table as Markdown."""
    columns = {**(HOLE if "hole_psnr" in found["rows"][0] else {}), **COLUMNS, "seconds": "CPU s/image"}
    lines = [["", *columns.values()], ["-", *["-:"] * len(columns)]]
    for row in found["rows"]:
        cells = [row.get(name) for name in columns]
        lines.append([row["name"], *("" if cell is None else f"{cell:.4g}" for cell in cells)])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"**{title}**: {found['adapter']}, {found['images']} photographs.\n\n{text}\n"


def main() -> None:
    """Measure all tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--keep", type=Path, help="folder for the images (default: none is kept)")
    keep = parser.parse_args().keep
    torch.set_num_threads(1)
    networks = {name: (lambda load=load: upscaled(load())) for name, load in outside.networks(1).items()}
    found = {}
    with tempfile.TemporaryDirectory() as name, Hub.open() as hub:
        folder = (keep or Path(name)).resolve()
        data = str(clean_pairs(folder / "pairs"))
        tables: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
            "Super-resolution, four times, clean": ("superres", {"data": data}, networks),
            "Super-resolution, four times, degraded": ("superres", {}, networks),
            "Inpainting": ("inpaint", {}, {"PatchMatch": lambda: filled(outside.patchmatch())}),
        }
        for number, (title, (task, options, makers)) in enumerate(tables.items()):
            found[title] = measured(hub, task, folder / f"table{number}", options, makers)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "peers.json").write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(table(title, rows) for title, rows in found.items()))


if __name__ == "__main__":
    main()
