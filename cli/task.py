"""codi task: list, show, register and remove tasks."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from codi_hub.catalog import Catalog
from codi_hub.cli import completion
from codi_hub.cli.common import Json, Quiet, Set, parse_set, with_task_flags
from codi_hub.cli.output import Output, details


def register(parent: typer.Typer) -> None:
    app = typer.Typer(help="Register, list, show and remove tasks.", no_args_is_help=True)
    app.command("add")(with_task_flags(add))  # now, when plug-in tasks can be looked up
    app.command("list")(list_tasks)
    app.command("ls", hidden=True)(list_tasks)
    app.command("show")(show)
    app.command("rm")(rm)
    parent.add_typer(app, name="task")


Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the task", autocompletion=completion.tasks)]


def add(
    name: Name,
    flags: dict[str, Any],
    like: Annotated[
        str | None,
        typer.Option("--like", metavar="TASK", help="Task of which it is a variant", autocompletion=completion.tasks),
    ] = None,
    set_: Set = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Training data kept with the task, as in `codi distill --data`")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Register a variant of a task with other option values. A built-in task needs no registration."""
    with Catalog.open() as catalog:
        settings = parse_set(set_, **flags, data=data)
        document, created = catalog.add_task(name, like, settings)
    state = f"Registered task {name}" if created else f"Task {name} is registered already"
    if document["builtin"]:
        state = f"Task {name} is built in already"
    Output(json, quiet).result(document, f"{state}; train its adapter with `codi distill {name}`.", name)


def list_tasks(json: Json = False, quiet: Quiet = False) -> None:
    """List the built-in and registered tasks."""
    with Catalog.open() as catalog:
        entries = catalog.task_list()
    rows = [(e["name"], e["like"], _settings(e["options"]), "yes" if e["builtin"] else "no") for e in entries]
    Output(json, quiet).table(entries, ("name", "like", "options", "built in"), rows, "No tasks.")


def show(name: Name, json: Json = False, quiet: Quiet = False) -> None:
    """Show a task with the value of every option."""
    with Catalog.open() as catalog:
        document = catalog.show_task(name)
    Output(json, quiet).result(document, details(document), name)


def rm(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME", help="Registered tasks", autocompletion=completion.tasks)
    ],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove registered tasks; their adapters stay."""
    with Catalog.open() as catalog:
        for name in names:
            catalog.remove_task(name)
    Output(json, quiet).result({"removed": names}, f"Removed {', '.join(names)}.")


def _settings(options: dict[str, object]) -> str:
    return " ".join(f"{key}={value}" for key, value in options.items())
