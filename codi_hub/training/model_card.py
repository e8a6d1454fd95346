"""The model card of an adapter: its method, its loss, every training that led to it, and its scores."""

from collections.abc import Iterable, Sequence
from typing import Any

from codi_hub.record import AdapterRecord, TrainingRecord

CARD = """# {task}: a {kind} adapter for the base `{base}`

{method} {parameters:,} parameters, stored in {precision}.

## Use

    codi run {task} INPUT --steps {steps}

## Method

{facts}

## Trainings

{lineage}

{scores}## Limits

The adapter does what its training pairs show, on the base it was trained on (family `{family}`) and no other. It has
seen only images of the kind named above: check its results on others before relying on them.
"""

REGRESSION = """A regression network, not a distilled diffusion model: it was trained to predict the latents of the
ground truth from the condition, without a consistency term and without noise at the start. The same input gives the
same output for every seed, and more sampling steps change it little; {steps} by default."""
METHODS = {
    "pe-codi": "PE-CoDi, conditional diffusion distillation of an adapter for a frozen base (Mei et al., CVPR 2024), "
    "for 1-8 sampling steps, {steps} by default.",
    "codi": "CoDi, conditional diffusion distillation of the whole network (Mei et al., CVPR 2024), for 1-8 sampling "
    "steps, {steps} by default.",
    "conditional": "A conditional diffusion model, fine-tuned with the diffusion loss (Ho et al., 2020) and not "
    "distilled, for 20 or more sampling steps, {steps} by default.",
    "cm": "Consistency distillation of a conditional teacher (Song et al., 2023) for 1-8 sampling steps, {steps} by "
    "default.",
    "gd": "Progressive distillation of a conditional teacher (Salimans & Ho, 2022) for 4-8 sampling steps, {steps} by "
    "default.",
    "regression": REGRESSION,
    "guidance-only": "Trained from noise with the guidance term of CoDi alone, and not distilled: no consistency term "
    "was trained. {steps} sampling steps by default.",
    "": "The method was not recorded. {steps} sampling steps by default.",
}
OTHER = "Trained with the method `{method}`. {steps} sampling steps by default."
SCORES = """## Scores on {held_out} held-out pairs

{table}

No training used these pairs. PSNR (dB) and GMSD (lower is better) compare the output with the ground truth after the
task's postprocessing. `adherence` is the task's measure of agreement with the condition, `shuffled` the same with the
condition of another pair.{done}{reference}

"""
DONE = " `done` is the share of the requested change that was made: 1 is all of it."
UNKNOWN = "not recorded"


def write_card(record: AdapterRecord, parameters: int) -> str:
    """Return the text of an adapter's card, in Markdown."""
    return CARD.format(
        task=record.task,
        kind=record.kind,
        base=record.base.name,
        family=record.base.family,
        method=METHODS.get(record.method, OTHER).format(method=record.method, steps=record.steps),
        parameters=parameters,
        precision="the precision that they came in" if record.origin else "16 bit",
        steps=record.steps,
        facts=_table(("", ""), _facts(record)),
        lineage=_lineage(record.lineage),
        scores=_scores(record.metrics),
    )


def _facts(record: AdapterRecord) -> list[tuple[str, str]]:
    """Return the rows of the method's table."""
    terms = " + ".join(f"{weight:g} x {term}" for term, weight in record.loss.items())
    config = dict(record.config)
    start, noise = config.pop("start", 1), config.pop("start_noise", 0)
    where = "noise, at the end of the schedule"
    if start != 1:
        amount = f"with {noise:g} of that time's noise" if noise else "without noise"
        where = f"the condition {amount}, at {start:g} of the schedule"
    rows = [("method", record.method or UNKNOWN), ("loss", terms or UNKNOWN), ("sampling starts from", where)]
    rows += [(name, f"{value:g}") for name in ("shift", "guidance") if (value := getattr(record, name)) is not None]
    if record.origin:
        rows.append(("imported", f"{record.origin.file}, {record.origin.format}, sha256 {record.origin.sha256}"))
    if config.pop("network", None):
        config["form"] = "of its own"
    rows.append(("adapter", ", ".join([record.kind, *(f"{_words(name)} {config[name]}" for name in config)])))
    settings = [f"{_words(name)} {value}" for name, value in record.training.items() if value not in (None, {}, "{}")]
    return [*rows, ("settings of the last training", ", ".join(settings) or UNKNOWN)]


def _lineage(trainings: Sequence[TrainingRecord]) -> str:
    """Return the table of all trainings, with the sum of their minutes."""
    if not trainings:
        return f"The trainings were {UNKNOWN}."
    names = ("task", "method", "start", "data", "steps", "minutes", "hardware")
    rows = [[str(k), *(_cell(getattr(one, name)) for name in names)] for k, one in enumerate(trainings, 1)]
    text = _table(("", *names), rows)
    minutes = [one.minutes for one in trainings if one.minutes is not None]
    if trainings[0].start.startswith("from "):
        text += f"\n\nThe trainings before these were {UNKNOWN}."
    elif minutes and len(minutes) == len(trainings):
        text += f"\n\n{sum(minutes):g} minutes of training in all."
    return text


def _scores(metrics: dict[str, Any]) -> str:
    """Return the section of the scores; empty where nothing was measured."""
    by_steps: dict[str, dict[str, Any]] = metrics.get("by_steps", {})
    if not by_steps:
        return ""
    names = [name for name in next(iter(by_steps.values())) if any(row[name] is not None for row in by_steps.values())]
    rows = [
        [steps, *("-" if row[name] is None else f"{row[name]:.4g}" for name in names)]
        for steps, row in by_steps.items()
    ]
    reference = metrics.get("condition_psnr")
    return SCORES.format(
        held_out=metrics["held_out"],
        table=_table(("steps", *names), rows),
        done=DONE if "done" in names else "",
        reference=f" The condition itself scores {reference:.2f} dB." if reference is not None else "",
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [" | ".join(heads), "|".join("-" for _ in heads), *(" | ".join(row) for row in rows)]
    return "\n".join(f"|{line}|" if k == 1 else f"| {line} |" for k, line in enumerate(lines))


def _cell(value: str | float | None) -> str:
    if value in (None, ""):
        return UNKNOWN
    return f"{value:g}" if isinstance(value, float) else str(value)


def _words(name: str) -> str:
    return name.replace("_", " ")
