"""codi base: add, list, show, choose and remove base models."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from codi_hub.catalog import Catalog
from codi_hub.cli.common import Json, Quiet
from codi_hub.cli.completion import bases
from codi_hub.cli.fields import options_from
from codi_hub.cli.output import Output, details
from codi_hub.config.base import BaseOptions

app = typer.Typer(help="Add, list, show, choose and remove base models.", no_args_is_help=True)


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="base")


Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the base", autocompletion=bases)]


@app.command()
@options_from(BaseOptions, with_task_flags=False)
def add(
    name: Name,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="Folder of a diffusers pipeline, .safetensors file, or hub id such as owner/name"
        ),
    ],
    given: dict[str, Any],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Add a base model; a name whose model has moved is pointed to its new place."""
    options = BaseOptions(source=source, **given)
    with Catalog.open() as catalog:
        row = catalog.add_base(name, options)
    card = f", distilled for {row.card['steps']} steps" if row.card.get("distilled") else ""
    Output(json, quiet).result(
        _json(row), f"Added base {name}{card}. Make it the default with `codi base use {name}`.", name
    )


@app.command("list")
def list_bases(json: Json = False, quiet: Quiet = False) -> None:
    """List the bases; a star marks the base in use."""
    with Catalog.open() as catalog:
        bases = catalog.bases()
    rows = [(b.name, "*" if b.default else "", b.family[:12], "yes" if b.bundled else "no", b.source) for b in bases]
    Output(json, quiet).table(
        [_json(row) for row in bases],
        ("name", "in use", "family", "bundled", "source"),
        rows,
        "No bases: add one with `codi base add NAME FOLDER`.",
    )


app.command("ls", hidden=True)(list_bases)


@app.command()
def show(name: Name, json: Json = False, quiet: Quiet = False) -> None:
    """Show all fields of a base."""
    with Catalog.open() as catalog:
        document = _json(catalog.registry.bases.get(name))
    Output(json, quiet).result(document, details(document), name)


@app.command()
def use(name: Name, json: Json = False, quiet: Quiet = False) -> None:
    """Make a base the default of every command."""
    with Catalog.open() as catalog:
        row = catalog.use_base(name)
    Output(json, quiet).result(_json(row), f"Base {name} is in use.", name)


@app.command()
def rm(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Bases to remove", autocompletion=bases)],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove bases from the registry. Their files stay."""
    with Catalog.open() as catalog:
        for name in names:
            catalog.remove_base(name)
    Output(json, quiet).result({"removed": names}, f"Removed {', '.join(names)}.")


def _json(row: Any) -> dict[str, Any]:
    return {key: value for key, value in asdict(row).items() if key != "sketch"}
