"""Generate the images of the README and of docs/gallery.md with the bundled models: `python -m recipes.gallery`.

Inputs are held-out scenes, the first of their seeds (of edits, of their kind), and scikit-image's photographs, the same
ones for every task: none was selected by its result.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from codi_hub.data.photographs import photographs
from codi_hub.data.synthetic.scenes_words import COLOURS, LIGHTS
from codi_hub.hub import Hub
from codi_hub.images.filters import filter2d, harmonic, to_uint8
from codi_hub.images.sheets import contact_sheet
from codi_hub.inference.engine import generate_function
from codi_hub.tasks.base import Prepared, Task
from codi_hub.tasks.deblur import disc_kernel
from codi_hub.tasks.degradation import degrade_once
from codi_hub.tasks.depth import held_out_scenes
from codi_hub.tasks.edit import held_out_edits
from codi_hub.tasks.masks import hole

OUT = Path("docs") / "images"
LARGE, SMALL = 256, 128  # side in px
STEPS = 4
INSTRUCTIONS = ("make it night", "add fog", "make it sunset")  # for the photographs
Cells = list[list[np.ndarray | None]]


class Run:
    """A bundled adapter; `run(prepared, prompt, seed, steps)` returns the output of `codi run`."""

    def __init__(self, hub: Hub, name: str):
        base, adapter, row = hub.use(name)
        self.task: Task = hub.catalog.load_task(row.task)
        self._generate = generate_function(base, adapter)

    def __call__(self, prepared: Prepared, prompt: str = "", seed: int = 0, steps: int = STEPS) -> np.ndarray:
        (output,) = self._generate([prepared.condition], [prompt], [seed], steps)
        return self.task.finish(output, prepared)


def images(scenes: int, first: int = 0) -> list[np.ndarray]:
    """Return some scenes, then the centres of the first three photographs."""
    middles = []
    for photo in photographs(count=3):
        top, left = ((side - LARGE) // 2 for side in photo.image.shape[:2])
        middles.append(photo.image[top : top + LARGE, left : left + LARGE])
    return [scene["image"] for scene in held_out_scenes(first + scenes, LARGE)[first:]] + middles


def superres(run: Run) -> tuple[Cells, tuple[str, ...], list[str]]:
    rows = []
    for k, image in enumerate(images(2)):
        small = degrade_once(image, 4, 1.2, 5.0, 75, np.random.default_rng(k))
        bicubic = np.asarray(Image.fromarray(small).resize((LARGE, LARGE), Image.Resampling.BICUBIC))
        rows.append([small, bicubic, run(run.task.prepare(Image.fromarray(small)), seed=k), image])
    return rows, ("input", "bicubic", f"codi run superres, {STEPS} steps", "original"), []


def deblur(run: Run) -> tuple[Cells, tuple[str, ...], list[str]]:
    rows = []
    for k, image in enumerate(images(1)):
        blurred = to_uint8(filter2d(image.astype(np.float32) / 255, disc_kernel(3.0)))
        rows.append([blurred, run(run.task.prepare(blurred), seed=k), image])
    return rows, ("input, defocused", f"codi run deblur, {STEPS} steps", "original"), []


def inpaint(run: Run) -> tuple[Cells, tuple[str, ...], list[str]]:
    rows = []
    for k, image in enumerate(images(3, first=3)):
        covered = hole(np.random.default_rng(k), LARGE, LARGE, ("boxes", "brush")[k % 2], 0.15)
        prepared = run.task.prepare(np.dstack([image, np.where(covered, np.uint8(0), np.uint8(255))]))
        shown = np.where(covered[..., None], np.uint8(255), image)
        rows.append([shown, harmonic(image / np.float32(255), covered), run(prepared, seed=k), image])
    return rows, ("input", "smooth fill", f"codi run inpaint, {STEPS} steps", "original"), []


def canny(run: Run) -> tuple[Cells, tuple[str, ...], list[str]]:
    rows, labels = _with_captions(run, held_out_scenes(6, SMALL)[3:], "image")
    return rows, ("edges", f"codi run canny, {STEPS} steps", "other colours, at sunset", "ground truth"), labels


def depth(run: Run) -> tuple[Cells, tuple[str, ...], list[str]]:
    rows, labels = _with_captions(run, held_out_scenes(9, SMALL)[6:], "depth")
    return rows, ("input", f"codi run depth, {STEPS} steps", "other colours, at sunset", "ground truth"), labels


def _with_captions(run: Run, scenes: list[dict[str, Any]], key: str) -> tuple[Cells, list[str]]:
    """Return outputs for a part of each scene with its caption, and with another caption of the same objects."""
    rows = []
    for k, scene in enumerate(scenes):
        prepared = run.task.prepare(scene[key])
        captions = scene["caption"], recoloured(scene["caption"])
        rows.append([prepared.condition, *(run(prepared, text, k) for text in captions), scene["image"]])
    return rows, [scene["caption"] for scene in scenes]


def recoloured(caption: str) -> str:
    """Return the caption with other colours of all objects, and at sunset, or in daylight if it was at sunset."""
    names = [name for name in COLOURS if name != "orange"]  # the only one with another article
    after = {"an orange": "a green", "orange": "green"}
    after |= {name: names[(k + 3) % len(names)] for k, name in enumerate(names)}
    sunset, day = LIGHTS["sunset"].words, LIGHTS["day"].words
    after |= {look.words: sunset for look in LIGHTS.values()} | {sunset: day}
    found = re.compile("|".join(rf"\b{words}\b(?! wall)" for words in after))
    return found.sub(lambda one: after[one[0]], caption)


def edit(run: Run) -> tuple[Cells, tuple[str, ...], list[str]]:
    rows, labels = [], []
    edits = held_out_edits(24, SMALL)
    first = {kind: [one for one in edits if one.kind == kind] for kind in ("time", "recolour", "remove")}
    for k, one in enumerate(one for found in first.values() for one in found[:2]):
        prepared = run.task.prepare(Image.fromarray(one.before.image))
        outputs = [run(prepared, one.instruction, k, steps) for steps in (1, STEPS)]
        rows.append([one.before.image, *outputs, one.after.image])
        labels.append(one.instruction)
    for k, (image, instruction) in enumerate(zip(images(0), INSTRUCTIONS, strict=True)):
        prepared = run.task.prepare(image)
        rows.append([image, *(run(prepared, instruction, k, steps) for steps in (1, STEPS)), None])
        labels.append(instruction)
    return rows, ("input", "codi run edit, 1 step", f"{STEPS} steps", "ground truth"), labels


SHEETS: dict[str, Callable[[Run], tuple[Cells, tuple[str, ...], list[str]]]] = {
    one.__name__: one for one in (superres, inpaint, depth, edit, canny, deblur)
}


def main() -> None:
    """Generate the sheets named on the command line, or all with an adapter."""
    parser = argparse.ArgumentParser(prog="python -m recipes.gallery", description=__doc__)
    parser.add_argument(
        "tasks", nargs="*", metavar="TASK", help=f"of {', '.join(SHEETS)} (default: all with an adapter)"
    )
    OUT.mkdir(parents=True, exist_ok=True)
    with Hub.open() as hub:
        there = {row.task for row in hub.catalog.list(base="nano")}
        for name in parser.parse_args().tasks or [name for name in SHEETS if name in there]:
            rows, columns, labels = SHEETS[name](Run(hub, name))
            contact_sheet(rows, columns=columns, labels=labels, width=192).save(OUT / f"{name}.png", optimize=True)
            print(OUT / f"{name}.png")


if __name__ == "__main__":
    main()
