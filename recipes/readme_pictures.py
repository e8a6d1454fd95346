"""Makes the README's pictures, docs/images/TASK.png, with the bundled models: `python -m recipes.readme_pictures`.

The pictures are scenes that no training drew, the first ones of their seeds (of edits, of their kind): nobody chose
them by how they came out.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from codi_hub.evaluate.depth import held_out_scenes
from codi_hub.evaluate.edit import held_out_edits
from codi_hub.evaluate.sheets import sheet
from codi_hub.hub import Hub
from codi_hub.tasks.base import Prepared, Task
from codi_hub.tasks.degradation import degrade_once
from codi_hub.tasks.filters import harmonic
from codi_hub.tasks.masks import hole

OUT = Path("docs") / "images"
LARGE, SMALL = 256, 128  # px a side
STEPS = 4
Cells = list[list[np.ndarray]]


class Run:
    """A bundled adapter: `run(prepared, prompt, seed, steps)` is what `codi run` would write."""

    def __init__(self, hub: Hub, name: str):
        base, adapter, row = hub.use(name)
        self.task: Task = hub.load_task(row.task)
        self._generate = hub.generator(base, adapter)

    def __call__(self, prepared: Prepared, prompt: str = "", seed: int = 0, steps: int = STEPS) -> np.ndarray:
        (output,) = self._generate([prepared.condition], [prompt], [seed], steps)
        return self.task.finish(output, prepared)


def superres(run: Run) -> tuple[Cells, tuple[str, ...], list[str]]:
    rows = []
    for k, scene in enumerate(held_out_scenes(3, LARGE)):
        small = degrade_once(scene["image"], 4, 1.2, 5.0, 75, np.random.default_rng(k))
        bicubic = np.asarray(Image.fromarray(small).resize((LARGE, LARGE), Image.Resampling.BICUBIC))
        rows.append([small, bicubic, run(run.task.prepare(Image.fromarray(small)), seed=k), scene["image"]])
    return rows, ("input", "bicubic", f"codi run superres, {STEPS} steps", "original"), []


def inpaint(run: Run) -> tuple[Cells, tuple[str, ...], list[str]]:
    rows = []
    for k, scene in enumerate(held_out_scenes(6, LARGE)[3:]):
        image = scene["image"]
        covered = hole(np.random.default_rng(k), LARGE, LARGE, ("boxes", "brush")[k % 2], 0.15)
        prepared = run.task.prepare(np.dstack([image, np.where(covered, np.uint8(0), np.uint8(255))]))
        shown = np.where(covered[..., None], np.uint8(255), image)
        rows.append([shown, harmonic(image / np.float32(255), covered), run(prepared, seed=k), image])
    return rows, ("input", "smooth fill", f"codi run inpaint, {STEPS} steps", "original"), []


def depth(run: Run) -> tuple[Cells, tuple[str, ...], list[str]]:
    rows, labels = [], []
    for k, scene in enumerate(held_out_scenes(9, SMALL)[6:]):
        prepared = run.task.prepare(scene["depth"])
        outputs = [run(prepared, scene["caption"], seed) for seed in (k, k + 100)]
        rows.append([prepared.condition, *outputs, scene["image"]])
        labels.append(scene["caption"])
    return rows, ("input", f"codi run depth, {STEPS} steps", "another seed", "scene it came from"), labels


def edit(run: Run) -> tuple[Cells, tuple[str, ...], list[str]]:
    rows, labels = [], []
    edits = held_out_edits(24, SMALL)
    first = {kind: [one for one in edits if one.kind == kind] for kind in ("time", "recolour", "remove")}
    for k, one in enumerate([*first["time"][:2], first["recolour"][0], first["remove"][0]]):
        prepared = run.task.prepare(Image.fromarray(one.before.image))
        outputs = [run(prepared, one.instruction, k, steps) for steps in (1, STEPS)]
        rows.append([one.before.image, *outputs, one.after.image])
        labels.append(one.instruction)
    return rows, ("input", "codi run edit, 1 step", f"{STEPS} steps", "rendered as told"), labels


PICTURES: dict[str, Callable[[Run], tuple[Cells, tuple[str, ...], list[str]]]] = {
    one.__name__: one for one in (superres, inpaint, depth, edit)
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.readme_pictures", description=__doc__)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(PICTURES)} (default: all)")
    OUT.mkdir(parents=True, exist_ok=True)
    with Hub.open() as hub:
        for name in parser.parse_args().tasks or PICTURES:
            rows, columns, labels = PICTURES[name](Run(hub, name))
            sheet(rows, columns=columns, labels=labels, width=192).save(OUT / f"{name}.png", optimize=True)
            print(OUT / f"{name}.png")


if __name__ == "__main__":
    main()
