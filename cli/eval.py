"""codi eval: how good an adapter is, step by step."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from codi_hub.cli.common import Json, Quiet
from codi_hub.cli.fields import options_from
from codi_hub.cli.output import Output
from codi_hub.cli.progress import Display
from codi_hub.config.evaluate import EvalOptions
from codi_hub.evaluation.table import legend

COLUMNS = "Columns, each the mean over the images, where the task has it:\n\n" + "\n\n".join(legend())


def register(app: typer.Typer) -> None:
    app.command("eval", epilog=COLUMNS)(evaluate)


@options_from(EvalOptions)
def evaluate(
    task: Annotated[str, typer.Argument(metavar="TASK", help="TASK, TASK:VERSION or TASK:TAG")],
    given: dict[str, Any],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measures an adapter on held-out images at several numbers of steps, beside what --against names.

    Prints a table. --out also gets it as text, Markdown and JSON, a sheet of pictures,
    and a plot of quality against steps.
    """
    options = EvalOptions(**given)
    from codi_hub.evaluation.table import Table
    from codi_hub.hub import Hub

    out = Output(json, quiet)
    with Hub.open(base=options.base) as hub, Display(out) as display:
        report = hub.evaluate(task, options, on_event=display)
    lines = [f"{report.adapter} on {report.base}, {report.images} images"]
    lines += [Table(report.columns, report.rows).as_text(), *report.notes]
    lines += [f"Report and pictures: {report.out}"] if report.out else []
    out.result(report.to_json(), "\n".join(lines))
