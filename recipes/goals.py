"""Evaluate the bundled models against their goals: `python -m recipes.goals [PART...]`.

Every figure is of held-out images: scikit-image's photographs, and scenes of seeds that no training draws. They
are written to docs/results/goals.json, and from there into a section of docs/results.md and of the bundled cards.
"""

import argparse
import json
import operator
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codi_hub import EvalOptions
from codi_hub.adapters.format import CARD
from codi_hub.data.photographs import photographs
from codi_hub.evaluation.context import EvaluationContext
from codi_hub.evaluation.run import round_trip
from codi_hub.hub import Hub
from codi_hub.images.filters import filter2d, to_uint8
from codi_hub.images.metrics import as_float, gmsd, psnr, structure_agreement
from codi_hub.inference.engine import generate_function
from codi_hub.tasks.deblur import disc_kernel
from codi_hub.tasks.superres import BICUBIC, GRID, Degradation, compare_with_bicubic
from recipes.nano import bundle

PAGE = Path("docs/results.md")
CARDS = {"base": ("autoencoder",), "superres": ("superres", "speed")} | {
    task: (task,) for task in ("inpaint", "depth", "edit", "canny", "deblur")
}  # folder of the bundle -> the parts in its card
FIGURES = Path("docs/results/goals.json")
TITLE = "## The bundled models against their goals"
STEPS = 4
EDITS, SCENES = 384, 96
DEFOCUS = 3.0  # radius of the disc blur, px
CLEAN = (Degradation(0.0, 0.0, None),)
SIDE = 512  # side of the output that is timed, px
ROUNDS = 5
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
COMPARED = (("perceptual", "perceptual distance", "< 1"), ("gmsd", "gradient distance (GMSD)", "< 1"),
            ("frechet", "Frechet distance", ""))  # fmt: skip
# stages of the postprocessing of `superres`, from none to all
FINISHES: dict[str, dict[str, Any]] = {
    "as the network made it": {"detail": 1, "correct": False, "project": 0, "sharpen": 0},
    "0.7 of what it changed": {"correct": False, "project": 0, "sharpen": 0},
    "and the input's low frequencies": {"correct": True, "project": 0, "sharpen": 0},
    "and back-projection": {"correct": True, "project": 1, "sharpen": 0},
    "as `codi run` has it": {},
}


@dataclass(frozen=True)
class Goal:
    """A figure and its goal; `needed` is empty for a figure without one."""

    text: str
    figure: float
    needed: str = ""

    @property
    def holds(self) -> str:
        """Whether the goal is met, as a table shows it."""
        if not self.needed:
            return ""
        sign, limit = self.needed.split()
        return "yes" if OPERATORS[sign](self.figure, float(limit)) else "**no**"


def superres(hub: Hub) -> Iterator[Goal]:
    """Yield x4 and x2 against bicubic, at each stage of the postprocessing."""
    base, adapter, row = hub.use("superres")
    generate = generate_function(base, adapter)

    def scores(degradations: tuple[Degradation, ...], **options: Any) -> tuple[float, float]:
        """PSNR more than bicubic's, GMSD relative to bicubic's."""
        task = hub.catalog.load_task(row.task, options)
        context = EvaluationContext(generate, steps=(STEPS,))
        measured = compare_with_bicubic(task, photographs(), context, degradations)
        bicubic, ours = (measured.table.row(name) for name in (BICUBIC, f"{STEPS} steps"))
        return ours["psnr"] - bicubic["psnr"], ours["gmsd"] / bicubic["gmsd"]

    for finish, options in FINISHES.items():
        last = finish == list(FINISHES)[-1]
        decibel, ratio = scores(GRID, **options)
        yield Goal(f"superres x4, degraded, {finish}: PSNR, dB above bicubic", decibel, ">= 1" if last else "")
        yield Goal(f"superres x4, degraded, {finish}: GMSD, times bicubic's", ratio, "<= 0.8" if last else "")
        decibel, _ = scores(CLEAN, **options)
        yield Goal(f"superres x4, clean, {finish}: PSNR, dB above bicubic", decibel, ">= 0" if last else "")
    decibel, ratio = scores(GRID, scale=2)
    yield Goal("superres x2, degraded: PSNR, dB above bicubic", decibel)
    yield Goal("superres x2, degraded: GMSD, times bicubic's", ratio)


def inpaint(hub: Hub) -> Iterator[Goal]:
    """Yield holes of a quarter of the image against OpenCV's inpainting, over the whole image."""
    rows = {row["name"]: row for row in hub.evaluate("inpaint", EvalOptions(steps=(STEPS,))).rows}
    ours = rows[f"{STEPS} steps"]
    for other in ("Telea", "Navier-Stokes"):
        for figure, name, needed in COMPARED:
            yield Goal(f"inpaint: {name}, times that of {other}", ours[figure] / rows[other][figure], needed)


def depth(hub: Hub) -> Iterator[Goal]:
    """Yield how much better an image's edges agree with its own map than with another."""
    rows = {row["name"]: row for row in hub.evaluate("depth", EvalOptions(steps=(STEPS,))).rows}
    margin = rows[f"{STEPS} steps"]["margin"] / rows["scenes"]["margin"]
    yield Goal("depth, scenes: adherence beyond another's map, times that of the scenes themselves", margin, ">= 1")
    base, adapter, row = hub.use("depth")
    task = hub.catalog.load_task(row.task)
    (photo,) = (photo for photo in photographs() if photo.depth is not None)
    prepared = task.prepare(photo.depth)
    (output,) = generate_function(base, adapter)([prepared.condition], ["a red box on concrete"], [0], STEPS)
    image, own = task.finish(output, prepared), prepared.condition
    agreed, chance = (structure_agreement(image, other) for other in (own, np.ascontiguousarray(own[:, ::-1])))
    yield Goal("depth, the motorcycle's true disparity: adherence", agreed, ">= 0.4")
    yield Goal("depth, the motorcycle's true disparity: adherence to its mirror image", chance)


def edit(hub: Hub) -> Iterator[Goal]:
    """Yield the shares of instructions followed and of the rest unchanged."""
    for row in hub.evaluate("edit", EvalOptions(steps=(1, STEPS), count=EDITS)).rows:
        if row["name"] in ("1 step", f"{STEPS} steps"):
            yield Goal(f"edit, {row['name']}: share of instructions followed", row["followed"], ">= 0.95")
            for kind in ("recolour", "remove", "time"):
                yield Goal(f"edit, {row['name']}: of kind {kind}", row[kind])
            yield Goal(f"edit, {row['name']}: share of the rest unchanged", row["kept"], ">= 0.98")


def canny(hub: Hub) -> Iterator[Goal]:
    """Yield how well the edges of the output agree with the condition."""
    (row,) = hub.evaluate("canny", EvalOptions(steps=(STEPS,), count=SCENES)).rows
    yield Goal("canny, scenes: adherence", row["adherence"])
    yield Goal("canny, scenes: adherence to another scene's edges", row["shuffled"])


def deblur(hub: Hub) -> Iterator[Goal]:
    """Yield defocused photographs against the originals."""
    base, adapter, row = hub.use("deblur")
    task, generate = hub.catalog.load_task(row.task), generate_function(base, adapter)
    gains, ratios = [], []
    for photo in photographs():
        blurred = to_uint8(filter2d(as_float(photo.image).astype(np.float32), disc_kernel(DEFOCUS)))
        prepared = task.prepare(blurred)
        output = task.finish(generate([prepared.condition], [""], [0], STEPS)[0], prepared)
        gains.append(psnr(output, photo.image) - psnr(blurred, photo.image))
        ratios.append(gmsd(output, photo.image) / gmsd(blurred, photo.image))
    about = f"deblur, photographs defocused by {DEFOCUS:g} px"
    yield Goal(f"{about}: PSNR, dB above the input", statistics.fmean(gains), "> 0")
    yield Goal(f"{about}: GMSD, times the input's", statistics.fmean(ratios), "< 1")


def autoencoder(hub: Hub) -> Iterator[Goal]:
    """Yield the reconstruction of photographs, the upper bound of every adapter."""
    base, _, _ = hub.use("superres")
    figures = [psnr(round_trip(base, as_float(photo.image)), photo.image) for photo in photographs()]
    yield Goal("autoencoder: PSNR on photographs, mean, dB", statistics.fmean(figures), ">= 32")
    yield Goal("autoencoder: PSNR on the worst photograph, dB", min(figures))


def speed(hub: Hub) -> Iterator[Goal]:
    """Yield the seconds for an output of 512 x 512 px with pre- and postprocessing, networks loaded."""
    base, adapter, row = hub.use("superres")
    task, generate = hub.catalog.load_task(row.task), generate_function(base, adapter)
    small = photographs(count=1)[0].image[: SIDE // 4, : SIDE // 4]
    seconds = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        prepared = task.prepare(small)
        (output,) = generate([prepared.condition], [""], [0], STEPS)
        task.finish(output, prepared)
        seconds.append(time.perf_counter() - began)
    text = f"superres to {SIDE}x{SIDE}, {STEPS} steps, {torch.get_num_threads()} CPU threads: seconds"
    yield Goal(text, statistics.median(seconds[1:]), "< 2")


PARTS: dict[str, Callable[[Hub], Iterator[Goal]]] = {
    one.__name__: one for one in (autoencoder, superres, inpaint, depth, edit, canny, deblur, speed)
}


def section(figures: dict[str, Any], parts: Iterable[str] = PARTS) -> str:
    """Return the section of the page, or of a card with some of the parts."""
    about = f"`python -m recipes.goals`; base {figures['base']}, {figures['date']}."
    lines = [TITLE, "", "Held-out images: " + about, "", "| | value | goal | met |", "|-|-:|-:|-|"]
    for part in parts:
        for goal in (Goal(**row) for row in figures["parts"].get(part, ())):
            lines.append(f"| {goal.text} | {goal.figure:.3g} | {goal.needed} | {goal.holds} |")
    return "\n".join(lines) + "\n"


def insert(page: str, text: str, before: str = "## ") -> str:
    """Return the page with the section replaced, or inserted before a line that starts with `before`, or at the end."""
    whole = re.compile(rf"^{re.escape(TITLE)}\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
    if whole.search(page):
        return whole.sub(lambda _: text + "\n", page)
    if f"\n{before}" not in page:
        return f"{page}\n{text}\n"
    first = page.index(f"\n{before}") + 1
    return f"{page[:first]}{text}\n{page[first:]}"


def main() -> None:
    """Measure the parts named on the command line, or all with an adapter, and update page and cards."""
    parser = argparse.ArgumentParser(prog="python -m recipes.goals", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all with an adapter)"
    )
    parts = parser.parse_args().parts
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}")
    figures: dict[str, Any] = json.loads(FIGURES.read_text()) if FIGURES.exists() else {"parts": {}}
    with Hub.open() as hub:
        base = hub.catalog.registry.bases.get("nano").family
        there = {"autoencoder", "speed"} | {row.task for row in hub.catalog.registry.adapters.list(base="nano")}
        if figures.get("base") != base:
            figures = {"base": base, "parts": {}}
        for part in parts or [part for part in PARTS if part in there]:
            print(f"== {part}", flush=True)
            rows = []
            for goal in PARTS[part](hub):
                print(f"{goal.text}: {goal.figure:.4g} {goal.needed} {goal.holds}", flush=True)
                rows.append(asdict(goal))
            figures["parts"][part] = rows
            figures["date"] = time.strftime("%Y-%m-%d")
            FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    PAGE.write_text(insert(PAGE.read_text(), section(figures)))
    for folder, parts in CARDS.items():
        card = bundle.ROOT / folder / CARD
        if card.exists() and figures["parts"].keys() & set(parts):
            card.write_text(insert(card.read_text(), section(figures, parts), before="## Limits"))
    bundle.hash_again()


if __name__ == "__main__":
    main()
