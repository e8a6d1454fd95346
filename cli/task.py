"""codi task: the tasks there are, built in and registered."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from codi_hub.catalog import Catalog
from codi_hub.cli.common import Json, Quiet, Set, parse_set, with_task_flags
from codi_hub.cli.output import Output, details

app = typer.Typer(help="Registers, lists, shows and removes tasks.", no_args_is_help=True)


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="task")


Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the task")]


@app.command()
@with_task_flags
def add(
    name: Name,
    flags: dict[str, Any],
    like: Annotated[str | None, typer.Option("--like", metavar="TASK", help="Task it is a variant of")] = None,
    set_: Set = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Training data kept with the task, as in `codi distill --data`")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Registers a task: a built-in one, or a variant of one with its own options."""
    with Catalog.open() as catalog:
        settings = parse_set(set_, **flags, data=data)
        _, created = catalog.add_task(name, like, settings)
        document = catalog.task(name)
    verb = "Registered" if created else "Already registered:"
    Output(json, quiet).result(document, f"{verb} task {name}. Train its adapter with `codi distill {name}`.", name)


@app.command("list")
def list_tasks(json: Json = False, quiet: Quiet = False) -> None:
    """Lists the tasks, built in and registered."""
    with Catalog.open() as catalog:
        entries = catalog.task_list()
    rows = [(e["name"], e["like"], _settings(e["options"]), "yes" if e["builtin"] else "no") for e in entries]
    Output(json, quiet).table(entries, ("name", "like", "options", "built in"), rows, "No tasks.")


app.command("ls", hidden=True)(list_tasks)


@app.command()
def show(name: Name, json: Json = False, quiet: Quiet = False) -> None:
    """Shows a task with every option's value."""
    with Catalog.open() as catalog:
        document = catalog.show_task(name)
    Output(json, quiet).result(document, details(document), name)


@app.command()
def rm(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Tasks to forget")],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Forgets registered tasks. Built-in ones stay."""
    with Catalog.open() as catalog:
        for name in names:
            catalog.remove_task(name)
    Output(json, quiet).result({"removed": names}, f"Removed {', '.join(names)}.")


def _settings(options: dict[str, object]) -> str:
    return " ".join(f"{key}={value}" for key, value in options.items())
