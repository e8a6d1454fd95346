"""Write docs/results.md: tables, plots, and for each claim whether it holds."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from codi_hub import tasks
from codi_hub.data.sources import MAX_HELD_OUT
from codi_hub.evaluation import metrics
from codi_hub.evaluation.plot import plot_quality
from codi_hub.evaluation.table import Table, legend
from recipes import goals
from recipes.paper.results import Results, at_key
from recipes.paper.rows import CLAIMS, COMMON, MEASURED, PAIRS, SIZE, TABLES, Claim, Row, Verdict
from recipes.paper.train import made_with

FIGURES = {  # columns of each table after the training steps
    "superres": ("frechet", "perceptual", "psnr", "gmsd"),
    "inpaint": ("frechet", "perceptual", "psnr", "gmsd"),
    "depth": ("frechet", "perceptual", "adherence", "shuffled"),
    "edit": ("followed", "kept", "frechet", "perceptual"),
    "ablation": ("frechet", "perceptual", "psnr", "gmsd"),
}
TITLES = {
    "superres": "Super-resolution, four times, degraded",
    "inpaint": "Inpainting",
    "depth": "Depth to image",
    "edit": "Editing by instruction",
    "ablation": "Ablations of PE-CoDi, on super-resolution",
}
COLUMNS = metrics.columns() | tasks.columns()
TEXT = Table([], [], COLUMNS)
ENOUGH = 3  # seeds before anything is said to hold
HEAD = """# Results

The comparisons of Mei et al., *CoDi: Conditional Diffusion Distillation for Higher-Fidelity and Faster Image
Generation* (CVPR 2024), repeated on `nano` as it was bundled at the time (its hash is below) and on this project's
synthetic images. Every row was trained from the same initial weights, on the same data, **for the same time**. This
page, except for the section on the bundled models, is written by

    python -m recipes.paper --steps {steps}

from [`results/paper.json`](results/paper.json), which the same command fills and resumes; `python -m recipes.paper
TABLE` runs one table ({tables}).

Common to all rows: {pairs:,} training pairs of {size} px, different ones for each seed; batch {batch}, learning rate
{lr:g}; the time of {steps} steps of PE-CoDi (a step of each row was timed side by side with the others, which gives its
number of steps). A method with a teacher and a student divides that time between them in halves. {measured} held-out
images, the same for all rows, with the same noise; outputs as the networks return them, without the task's
post-processing (except for inpainting, where the image outside the hole is the input). Figures are means over the
seeds, with minimum and maximum in parentheses; no claim is judged with fewer than {enough} seeds.

Frechet and perceptual distance use the feature network of `recipes/nano/features.py`, which shares nothing with the
measured models. They are **not FID and not LPIPS**, and the paper's figures cannot be compared with them; ratios and
orders can. The rows of the adapters bundled at the time show the effect of longer training: half an hour or more on two
CPU cores, against a few minutes.

{about}
"""


def verdict(claim: Claim, results: Results) -> tuple[Verdict, str]:
    """Return whether the claim holds beyond the spread of the seeds, and the ratio of means as text.

    It holds if the worst seed of the left meets it against the best of the right; it does not if the best of the left
    fails against the worst of the right; in between, or with fewer than `ENOUGH` seeds a side, it cannot be told.
    """
    left, right = (
        [row[claim.figure] for row in results.seeds(claim.task, key, at)] for key, at in (claim.left, claim.right)
    )
    if not left or not right:
        return "cannot be told", "not measured"
    text = f"{fmean(left) / fmean(right):.2f}" if fmean(right) else f"{fmean(left):.3g} to 0"
    if fmean(right) < claim.least:
        return "cannot be told", f"{text}, of {fmean(right):.2g}: neither has learnt it"
    if min(len(left), len(right)) < ENOUGH:
        return "cannot be told", f"{text} ({min(len(left), len(right))} of {ENOUGH} seeds)"
    if COLUMNS[claim.figure].better == "higher":
        surely, surely_not = min(left) >= claim.limit * max(right), max(left) < claim.limit * min(right)
    else:
        surely, surely_not = max(left) <= claim.limit * min(right), min(left) > claim.limit * max(right)
    return "holds" if surely else "does not hold" if surely_not else "cannot be told", text


def claims(results: Results) -> str:
    """Return the claims as a Markdown table, the project's goals after the paper's findings."""
    lines = ["| claim | figure | ratio | needed | here |", "|-|-|-:|-:|-|"]
    for claim in sorted(CLAIMS, key=lambda claim: claim.goal):
        found, ratio = verdict(claim, results)
        sign = ">=" if COLUMNS[claim.figure].better == "higher" else "<="
        whose = "goal: " if claim.goal else ""
        lines.append(f"| {whose}{claim.text} | {claim.figure} | {ratio} | {sign} {claim.limit:g} | {found} |")
    return "\n".join(lines)


def spread(column: str, values: list[float]) -> str:
    """Return mean and range as "0.123 (0.120-0.127)", or a single value."""
    if not values:
        return "-"
    mean = TEXT.cell(column, fmean(values))
    return mean if len(values) == 1 else f"{mean} ({TEXT.cell(column, min(values))}-{TEXT.cell(column, max(values))})"


def table(name: str, results: Results) -> str:
    """Return a table in Markdown: references, then each row at each way of sampling."""
    columns = FIGURES[name]
    lines = [
        "| method | sampled | training steps | seeds | "
        + " | ".join(COLUMNS[column].head for column in columns)
        + " |",
        "|-|-|-:|-:|" + "-:|" * len(columns),
    ]
    for reference, figures in results.references.get(_task(name), {}).items():
        cells = [TEXT.cell(column, figures.get(column)) for column in columns]
        lines.append(f"| {reference} | | | | {' | '.join(cells)} |")
    for row in shown(name):
        for at in row.at:
            found = results.seeds(row.task, row.key, at)
            if found:
                cells = [spread(column, [seed[column] for seed in found if column in seed]) for column in columns]
                first = f"| {row.name} | {at_key(at)} | {_steps(row, results)} | {len(found)} | "
                lines.append(first + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def shown(name: str) -> tuple[Row, ...]:
    """Return the rows of a table; ablations come after the row they are compared with."""
    return (TABLES["superres"][0], *TABLES[name]) if name == "ablation" else TABLES[name]


def _task(name: str) -> str:
    return TABLES[name][0].task


def _steps(row: Row, results: Results) -> str:
    """Return the training steps, after those of the teacher."""
    kept = next(made["made_with"] for name, made in results.rows.items() if name.startswith(f"{row.task}/{row.key}/"))
    teacher = f"{kept['from']['train_steps']} + " if "from" in kept else ""
    return f"{teacher}{kept['train_steps']}"


def plot(name: str, results: Results, path: Path) -> None:
    """Plot quality against steps: means over the seeds, sampled by DDIM."""
    columns = list(FIGURES[name])
    rows: list[dict[str, Any]] = [
        {"name": reference, "method": reference, "steps": None, **{c: figures.get(c) for c in columns}}
        for reference, figures in results.references.get(_task(name), {}).items()
    ]
    for row in shown(name):
        for at in row.at:
            found = results.seeds(row.task, row.key, at)
            if found and at[1] == "ddim":
                means = {c: fmean(seed[c] for seed in found) if c in found[0] else None for c in columns}
                rows.append({"name": f"{row.name}, {at_key(at)}", "method": row.name, "steps": at[0], **means})
    plot_quality(Table(columns, rows, COLUMNS), TITLES[name], path)


def write(results: Results, path: Path) -> None:
    """Write the page, and plots beside the results. Rows trained with other settings than today's are left out."""
    rows = {name: row for name, row in results.rows.items() if row["made_with"] == _made_now(name, results)}
    results = replace(results, rows=rows)
    steps = results.about["steps"]
    machines = sorted({row["machine"] for row in rows.values()})
    told = {**results.about, "trained on": "; ".join(machines), "adapters trained": len(rows)}
    about = "\n".join(f"- {name}: {value}" for name, value in told.items() if name != "steps")
    names = ", ".join(f"`{name}`" for name in TABLES)
    parts = [
        HEAD.format(
            steps=steps,
            tables=names,
            pairs=PAIRS - MAX_HELD_OUT,
            size=SIZE,
            measured=MEASURED,
            enough=ENOUGH,
            about=about,
            **_common(),
        ),
        "## What holds\n",
        claims(results) + "\n",
        f"A claim *holds* if the worst of {ENOUGH} seeds meets it against the best seed of the other side, *does not\n"
        "hold* if the best seed fails against the worst, and *cannot be told* in between.\n",
    ]
    for name, rows in TABLES.items():
        parts += [f"## {TITLES[name]}\n", f"    python -m recipes.paper {name} --steps {steps}\n", table(name, results)]
        if any(results.seeds(row.task, row.key, at) for row in rows for at in row.at):
            image = results.path.parent / f"{name}.png"
            plot(name, results, image)
            parts.append(f"![{TITLES[name]}: quality against steps]({image.relative_to(path.parent).as_posix()})\n")
    parts += ["## The figures\n", *_listed(legend({name: COLUMNS[name] for name in _columns()}))]
    page, figures = "\n".join(parts) + "\n", results.path.parent / goals.FIGURES.name
    path.write_text(goals.insert(page, goals.section(json.loads(figures.read_text()))) if figures.exists() else page)


def _made_now(name: str, results: Results) -> dict[str, Any] | None:
    task, key, seed = name.split("/")
    known = {(row.task, row.key): row for several in TABLES.values() for row in several}
    return made_with(known[task, key], int(seed), results) if (task, key) in known else None


def _common() -> dict[str, Any]:
    return {name: COMMON[name] for name in ("batch", "lr")}


def _columns() -> list[str]:
    return list(dict.fromkeys(column for columns in FIGURES.values() for column in columns))


def _listed(lines: Iterable[str]) -> list[str]:
    return [f"- {line}" for line in lines]
