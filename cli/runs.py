"""codi runs: read the run log."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from codi_hub.catalog import Catalog
from codi_hub.cli.common import Json, Quiet
from codi_hub.cli.output import Output, details, table
from codi_hub.errors import one_line, printable

app = typer.Typer(help="List and show earlier runs.", no_args_is_help=True)
MAX_INT = 2**31 - 1
PROMPT_WIDTH = 40  # characters of a prompt in a table


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="runs")


@app.command("list")
def list_runs(
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, max=MAX_INT, help="Number of runs")] = 50,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the last runs of `codi run`, newest first."""
    with Catalog.open() as catalog:
        runs = catalog.registry.runs.list(limit)
    rows = [(r.id, r.status, r.adapter, r.ok, r.failed, _time(r.started), _time(r.finished)) for r in runs]
    header = ("run", "status", "adapter", "ok", "failed", "started (UTC)", "finished (UTC)")
    Output(json, quiet).table([asdict(run) for run in runs], header, rows, "No runs yet: start one with `codi run`.")


app.command("ls", hidden=True)(list_runs)


@app.command()
def show(
    number: Annotated[int, typer.Argument(metavar="ID", min=1, max=MAX_INT, help="Number of the run")],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show a run and its items: status, output, seed, seconds, prompt and error of each."""
    with Catalog.open() as catalog:
        document = catalog.show_run(number)
    items = document["items"]
    keys = ("status", "input", "output", "seed", "seconds", "prompt", "error")
    rows = [[_cell(key, item[key]) for key in keys] for item in items]
    text = details({key: value for key, value in document.items() if key != "items"})
    Output(json, quiet).result(document, f"{text}\n\n{table(keys, rows)}" if items else text, str(number))


def _time(moment: str | None) -> str | None:
    """Return a moment to the second, as 2026-01-31 12:00:00."""
    return moment and moment[:19].replace("T", " ")


def _cell(key: str, value: object) -> object:
    if not isinstance(value, str):
        return value
    return one_line(value, PROMPT_WIDTH) if key == "prompt" else printable(value)
