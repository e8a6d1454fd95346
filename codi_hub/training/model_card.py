"""The model card that is written with every adapter: what it is, how it was made, what it scores."""

from typing import Any

from codi_hub.adapters.format import AdapterRecord
from codi_hub.config.options import method_of

CARD = """# {task}: a {kind} adapter for the base `{base}`

{made} sampling steps, {steps} by default. {parameters:,}
parameters, stored in 16 bit.

## Use

    codi run {task} INPUT --steps {steps}

## Training

| | |
|-|-|
{training}

## Scores on {held_out} held-out pairs, never trained on

| steps | {heads} |
|-|{rules}|
{rows}

PSNR (dB) and GMSD (lower is better) are against the target picture, after the task's `finish`. `adherence` is the
task's own measure of obedience to the condition, `shuffled` the same against another pair's condition.{done}{reference}

## Limits

It does what its training pairs show, on the base it was distilled on (family `{family}`) and no other. It has seen
pictures of the sort named above only; on others, look before you trust.
"""


CODI = "Distilled with CoDi Hub (conditional diffusion distillation, Mei et al., CVPR 2024) for 1-8"
MADE = {  # how a baseline came about; every other method is CoDi's
    "conditional": "Fine-tuned with CoDi Hub (plain conditional diffusion training, nothing distilled) for 20 and more",
    "cm": "Distilled with CoDi Hub (consistency distillation of a conditional teacher, Song et al., 2023) for 1-8",
    "gd": "Distilled with CoDi Hub (progressive distillation of a conditional teacher, Salimans & Ho, 2022) for 4-8",
}


DONE = " `done` is how far what was asked for has been done: 1 all of it, 0 nothing."


def write_card(record: AdapterRecord, parameters: int) -> str:
    """The card's text, in Markdown."""
    by_steps: dict[str, dict[str, Any]] = record.metrics["by_steps"]
    names = [name for name in next(iter(by_steps.values())) if any(row[name] is not None for row in by_steps.values())]
    rows = [
        f"| {steps} | " + " | ".join(_figure(row[name]) for name in names) + " |" for steps, row in by_steps.items()
    ]
    settings = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in record.config.items())
    told = {"adapter": f"{record.kind}, {settings}", **record.training}
    training = [f"| {key.replace('_', ' ')} | {value} |" for key, value in told.items()]
    given = record.metrics.get("condition_psnr")
    return CARD.format(
        made=MADE.get(method_of(record.training), CODI),
        task=record.task,
        kind=record.kind,
        base=record.base.name,
        family=record.base.family,
        steps=record.steps,
        parameters=parameters,
        training="\n".join(training),
        held_out=record.metrics["held_out"],
        heads=" | ".join(names),
        rules="|".join("-" for _ in names),
        rows="\n".join(rows),
        done=DONE if "done" in names else "",
        reference=f" The condition itself scores {given:.2f} dB." if given is not None else "",
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
