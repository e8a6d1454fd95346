"""The model card of an adapter on a hub: its metadata, and what is added to the card that it has."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from codi_hub.interop.licence import FRONT_MATTER, Licence
from codi_hub.record import AdapterRecord

MARKER = "<!-- added by codi push -->"
LIBRARY = "codi-hub"
PIPELINE = "image-to-image"
INSTALL = """## Install

    codi pull {where}
"""


def hub_card(
    card: str, record: AdapterRecord, base: Licence, licence: str | None, *, where: str, examples: Sequence[str]
) -> str:
    """Return a card with the hub's metadata, the licence of the base, how it is installed, and example images.

    Args:
        card: as it is stored; what an earlier push added is replaced.
        record: of the adapter.
        base: licence of its base.
        licence: identifier of the adapter's own; default: the base's.
        where: hub id or URL, which `codi pull` takes.
        examples: paths of the images beside the card.
    """
    body = FRONT_MATTER.sub("", card, count=1).partition(MARKER)[0].strip()
    images = "\n\n".join(f"![{path.rpartition('/')[2]}]({path})" for path in examples)
    parts = [body, MARKER, _licence(record, base, licence), INSTALL.format(where=where)]
    parts += [f"## Examples\n\n{images}\n"] if examples else []
    return f"---\n{metadata(record, base, licence, where)}\n---\n" + "\n\n".join(part.strip() for part in parts) + "\n"


def metadata(record: AdapterRecord, base: Licence, licence: str | None, where: str) -> str:
    """Return the card's metadata as YAML, its scores in the hub's model-index."""
    from huggingface_hub import EvalResult, ModelCardData

    own: dict[str, Any] = {"license": licence or base.id}
    if licence is None:
        own |= {"license_name": base.name, "license_link": base.link}
    own |= {"base_model_relation": "adapter"} if base.repo else {}
    results = [
        EvalResult(
            task_type=PIPELINE,
            task_name=record.task,
            dataset_type="held-out-pairs",
            dataset_name=f"{record.metrics.get('held_out', 'the')} held-out pairs",
            metric_type=name,
            metric_name=f"{name}, {steps} step{'s' * (steps != '1')}",
            metric_args={"steps": int(steps)},
            metric_value=value,
        )
        for steps, name, value in scores(record.metrics)
    ]
    return ModelCardData(
        base_model=base.repo,
        library_name=LIBRARY,
        pipeline_tag=PIPELINE,
        tags=[LIBRARY, record.task, record.kind, *([record.method] if record.method else [])],
        model_name=where.rstrip("/").rpartition("/")[2],
        eval_results=results or None,
        **own,
    ).to_yaml()


def scores(metrics: dict[str, Any]) -> Iterator[tuple[str, str, float]]:
    """Yield (steps, metric, value) of an adapter's held-out scores."""
    by_steps = metrics.get("by_steps", {})
    for steps, row in by_steps.items() if isinstance(by_steps, dict) else ():
        for name, value in row.items() if isinstance(row, dict) and str(steps).isdigit() else ():
            if name != "seconds" and isinstance(value, int | float) and math.isfinite(value):
                yield str(steps), name, value


def _licence(record: AdapterRecord, base: Licence, licence: str | None) -> str:
    named = f"`{record.base.name}`" + (f" (`{base.repo}`)" if base.repo else "")
    lines = ["## Licence", ""]
    if base.known:
        link = f" ({base.link})" if base.link else ""
        lines.append(f"The base {named} is under the licence {base.label}{link}.")
    else:
        lines.append(
            f"The licence of the base {named} is not known. Find it out before you use or pass on the adapter."
        )
    if base.gated:
        lines.append("The base is gated: those who want it accept its terms first.")
    if base.non_commercial:
        lines.append("It excludes commercial use.")
    lines.append(f"The adapter: {licence or base.label}.")
    return "\n".join(lines)
