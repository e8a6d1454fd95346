"""codi distill: an adapter for a task, trained on the frozen base."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from codi_hub.cli.common import Json, Quiet
from codi_hub.cli.fields import options_from
from codi_hub.cli.output import Output, cell
from codi_hub.cli.progress import Display
from codi_hub.config.options import DistillOptions
from codi_hub.reports import DistillResult
from codi_hub.training.distributed import together


def register(app: typer.Typer) -> None:
    app.command("distill")(distill)


@options_from(DistillOptions)
def distill(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Task to make an adapter for; see `codi task list`")],
    given: dict[str, Any],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Distils an adapter that does the task in 1-4 steps, and registers it as a new version."""
    with together(given.get("device") or "auto") as main:
        DistillOptions(**given)  # what is wrong on the command line is said before torch loads
        from codi_hub.hub import Hub

        out = Output(json, quiet)
        with Hub.open(base=given.get("base")) as hub, Display(out) as display:
            result = hub.distill(task, hub.catalog.distill_options(task, given), on_event=display)
    if main:
        _say(out, result)


def _say(out: Output, result: DistillResult) -> None:
    scores = ", ".join(f"{name} {cell(value)}" for name, value in result.metrics.items() if not isinstance(value, dict))
    lines = [f"Registered {result.adapter} for base {result.base} after {result.steps} steps: {scores or 'no scores'}"]
    if not result.moved_latest:
        lines.append(f"It scores worse than {result.latest}, which stays the latest; use it as {result.adapter}.")
    out.result(result.to_json() | {"moved_latest": result.moved_latest}, "\n".join(lines), result.adapter)
