"""Writes docs/RESULTS.md: tables, plots, and for each claim whether it holds here."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from codi_hub.evaluation.plot import plot_quality
from codi_hub.evaluation.table import COLUMNS, Table, cell, legend
from codi_hub.training.latents import HELD_OUT
from recipes import goals
from recipes.paper.results import Results, at_key
from recipes.paper.rows import CLAIMS, COMMON, MEASURED, PAIRS, SIZE, TABLES, Claim, Row, Verdict
from recipes.paper.train import made_with

FIGURES = {  # what a table shows, beside the training steps
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
ENOUGH = 3  # seeds before anything is said to hold
HEAD = """# The paper's tables, at this project's scale

Mei et al., *CoDi: Conditional Diffusion Distillation for Higher-Fidelity and Faster Image Generation* (CVPR 2024), was
measured on a Stable Diffusion sized model and photographs. Here are its comparisons on `nano`, as it was bundled when
they were made (its hash is below), and on pictures that this project makes: every row trained from the same start, on
the same data, **for the same time**. This page, but for the section on what is bundled now, is written by

    python -m recipes.paper --steps {steps}

from [`results/paper.json`](results/paper.json), which the same command fills, going on where it was interrupted;
`python -m recipes.paper TABLE` does one table ({tables}).

What is the same for all rows: {pairs:,} pairs of {size} px to train on, other ones for each seed; batch {batch},
learning rate {lr:g}; the time of {steps} steps of PE-CoDi (a step of each row was timed side by side with the others,
and the number of steps follows from that). What consists of a teacher and a student shares that time between the two,
half and half. {measured} pictures that nothing was trained on, the same for all rows and with the same noise; pictures
as the networks made them, without what `codi run` does to them afterwards (but for inpainting: outside its hole a
picture is the input, and the hole joins it). Figures are means over the
seeds, with the lowest and the highest in brackets; nothing is said to hold with fewer than {enough} seeds.

Frechet and perceptual distance are measured in the feature network that `recipes/nano/features.py` trains, which has
nothing to do with the models measured. They are **no FID and no LPIPS**, and the paper's figures cannot be compared
with them; ratios and orders can. The adapters bundled then stand above the rows to show what longer training of PE-CoDi
changes: they had half an hour and more of the same two CPU cores, and the rows a few minutes.

{about}
"""


def verdict(claim: Claim, results: Results) -> tuple[Verdict, str]:
    """Whether the claim holds beyond the spread of the seeds, and the ratio of means as text.

    It holds if even the worst seed of the left meets it against the best of the right, does not if even the best of the
    left fails against the worst of the right, and cannot be told in between or with fewer than `ENOUGH` seeds a side.
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
    """The claims as a Markdown table, its own aims after the paper's findings."""
    lines = ["| claim | figure | ratio | needed | here |", "|-|-|-:|-:|-|"]
    for claim in sorted(CLAIMS, key=lambda claim: claim.goal):
        found, ratio = verdict(claim, results)
        sign = ">=" if COLUMNS[claim.figure].better == "higher" else "<="
        whose = "goal: " if claim.goal else ""
        lines.append(f"| {whose}{claim.text} | {claim.figure} | {ratio} | {sign} {claim.limit:g} | {found} |")
    return "\n".join(lines)


def spread(column: str, values: list[float]) -> str:
    """Mean and range, "0.123 (0.120-0.127)"; one value stands alone."""
    if not values:
        return "-"
    mean = cell(column, fmean(values))
    return mean if len(values) == 1 else f"{mean} ({cell(column, min(values))}-{cell(column, max(values))})"


def table(name: str, results: Results) -> str:
    """One table in Markdown: references, then each row at each way of sampling."""
    columns = FIGURES[name]
    lines = [
        "| method | sampled | training steps | seeds | "
        + " | ".join(COLUMNS[column].head for column in columns)
        + " |",
        "|-|-|-:|-:|" + "-:|" * len(columns),
    ]
    for reference, figures in results.references.get(_task(name), {}).items():
        cells = [cell(column, figures.get(column)) for column in columns]
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
    """The rows of a table; ablations stand below what they are compared with."""
    return (TABLES["superres"][0], *TABLES[name]) if name == "ablation" else TABLES[name]


def _task(name: str) -> str:
    return TABLES[name][0].task


def _steps(row: Row, results: Results) -> str:
    """Training steps, and those of the teacher before."""
    kept = next(made["made_with"] for name, made in results.rows.items() if name.startswith(f"{row.task}/{row.key}/"))
    teacher = f"{kept['from']['train_steps']} + " if "from" in kept else ""
    return f"{teacher}{kept['train_steps']}"


def plot(name: str, results: Results, path: Path) -> None:
    """Quality against steps: means over the seeds of what is sampled by DDIM."""
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
    plot_quality(Table(columns, rows), TITLES[name], path)


def write(results: Results, path: Path) -> None:
    """The page, and its plots beside the results. Rows that were made otherwise than they would be now are left out."""
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
            pairs=PAIRS - HELD_OUT,
            size=SIZE,
            measured=MEASURED,
            enough=ENOUGH,
            about=about,
            **_common(),
        ),
        "## What holds\n",
        claims(results) + "\n",
        f"Beyond the spread of the seeds: a claim *holds* if the worst of {ENOUGH} seeds meets it against the best of "
        "the other side, *does not hold* if the best one fails against the worst, and *cannot be told* in between.\n",
    ]
    for name, rows in TABLES.items():
        parts += [f"## {TITLES[name]}\n", f"    python -m recipes.paper {name} --steps {steps}\n", table(name, results)]
        if any(results.seeds(row.task, row.key, at) for row in rows for at in row.at):
            image = results.path.parent / f"{name}.png"
            plot(name, results, image)
            parts.append(f"![{TITLES[name]}: quality against steps]({image.relative_to(path.parent).as_posix()})\n")
    parts += ["## The figures\n", *_listed(legend(_columns()))]
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
