"""codi eval: the quality of an adapter at several numbers of steps."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from codi_hub import tasks
from codi_hub.cli.common import Json, Quiet
from codi_hub.cli.completion import references
from codi_hub.cli.fields import options_from
from codi_hub.cli.output import Output
from codi_hub.cli.progress import Display
from codi_hub.config.options import EvalOptions
from codi_hub.evaluation import metrics
from codi_hub.evaluation.table import Table, legend


def register(app: typer.Typer) -> None:
    columns = "Columns, each the mean over the images, if the task has it:"
    app.command("eval", epilog="\n\n".join([columns, *legend(_columns())]))(options_from(EvalOptions)(evaluate))


def _columns() -> dict[str, metrics.Column]:
    """Return the columns of every installed metric and task."""
    return metrics.columns() | tasks.columns()


def evaluate(
    task: Annotated[
        str, typer.Argument(metavar="TASK", help="TASK, TASK:VERSION or TASK:TAG", autocompletion=references)
    ],
    given: dict[str, Any],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure an adapter on held-out images at several numbers of steps, beside what --against names.

    Prints a table. --out also gets it as text, Markdown and JSON, a contact sheet,
    and a plot of quality against steps.
    """
    options = EvalOptions(**given)
    from codi_hub.hub import Hub

    out = Output(json, quiet)
    with Hub.open(base=options.base) as hub, Display(out) as display:
        report = hub.evaluate(task, options, on_event=display)
    lines = [f"{report.adapter} on {report.base}, {report.images} images"]
    lines += [Table(report.columns, report.rows, _columns()).as_text(), *report.notes]
    lines += [f"Report and images: {report.out}"] if report.out else []
    out.result(report.to_json(), "\n".join(lines))
