"""codi list, show, tag, cp, rm: list, show, tag, copy and remove adapters."""

from __future__ import annotations

from typing import Annotated

import typer

from codi_hub.catalog import Catalog, adapter_json
from codi_hub.cli.common import Base, Json, Quiet
from codi_hub.cli.completion import references, tasks
from codi_hub.cli.output import Output, cell, details, size
from codi_hub.errors import printable

HEADER = ("adapter", "task", "version", "base", "kind", "method", "steps", "size", "score", "tags")
REF = "TASK, TASK:VERSION or TASK:TAG"
LATEST = "latest"
MAX_INT = 2**31 - 1
PAGE = 200  # rows of a table by default


def register(app: typer.Typer) -> None:
    app.command("list")(list_adapters)
    app.command("ls", hidden=True)(list_adapters)
    app.command("show")(show)
    app.command("tag")(tag)
    app.command("cp")(copy)
    app.command("rm")(remove)


def list_adapters(
    task: Annotated[str | None, typer.Argument(metavar="TASK", help="Only this task", autocompletion=tasks)] = None,
    base: Base = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=1,
            max=MAX_INT,
            help=f"Number of adapters (default: {PAGE} in a table, all with --json and --quiet)",
        ),
    ] = None,
    offset: Annotated[int, typer.Option("--offset", min=0, max=MAX_INT, help="Number of adapters to skip")] = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the adapters: task, version, base, kind, method, steps, size, score and tags. Also: codi ls."""
    out = Output(json, quiet)
    page = limit or (None if json or quiet else PAGE)
    with Catalog.open() as catalog:
        first = catalog.list(task, base, page and page + 1, offset)
    rows = first[:page]
    table = [
        (r.ref, r.task, r.version, r.base, r.kind, r.method, r.steps, size(r.bytes), r.score, ", ".join(r.tags))
        for r in rows
    ]
    empty = (
        f"No adapters after the first {offset}." if offset else "No adapters yet: train one with `codi distill TASK`."
    )
    out.table([adapter_json(row) for row in rows], HEADER, table, empty)
    if first[len(rows) :]:
        out.say(f"There are more adapters: --offset {offset + len(rows)} shows the next, --limit N shows N.")


def show(
    ref: Annotated[str, typer.Argument(metavar="REF", help=f"{REF}, or the name of a base", autocompletion=references)],
    base: Base = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show all fields of an adapter, task or base."""
    with Catalog.open(base=base) as catalog:
        document = catalog.show(ref)
    card = document.get("card")
    text = details({key: value for key, value in document.items() if key not in ("card", "config", "sketch")})
    if card:
        text = "\n".join([text, "", *map(printable, card.strip().splitlines())])
    Output(json, quiet).result(document, text, document.get("ref") or ref)


def tag(
    ref: Annotated[str, typer.Argument(metavar="REF", help=REF, autocompletion=references)],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The tag; `latest` is the version that TASK alone means")],
    remove: Annotated[bool, typer.Option("--remove", help="Remove the tag")] = False,
    base: Base = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Tag a version, which TASK:NAME then means. A tag of another version moves."""
    with Catalog.open(base=base) as catalog:
        row = catalog.tag(ref, name, remove)
    text = f"Removed {row.task}:{name}; it was" if remove else f"{row.task}:{name} is"
    Output(json, quiet).result(adapter_json(row), f"{text} {row.ref} for base {row.base}.", row.ref)


def copy(
    source: Annotated[str, typer.Argument(metavar="SRC", help=REF, autocompletion=references)],
    task: Annotated[
        str, typer.Argument(metavar="DST", help="Task to which it is added as the next version", autocompletion=tasks)
    ],
    base: Base = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Add an adapter to another task of the same kind. Both share the files."""
    with Catalog.open(base=base) as catalog:
        row, created = catalog.copy(source, task)
    text = f"{row.ref} for base {row.base} already has these weights."
    if created:
        text = f"Copied {row.parent} to {row.ref} for base {row.base}."
        if LATEST not in row.tags:
            why = f"Its score is worse than, or does not compare with, that of {task}:{LATEST}, which stays"
            text += f"\n{why}; use it as {row.ref}."
    Output(json, quiet).result(adapter_json(row) | {"parent": row.parent, "created": created}, text, row.ref)


def remove(
    refs: Annotated[
        list[str],
        typer.Argument(
            metavar="REF", help="TASK:VERSION or TASK:TAG; TASK if it has only one", autocompletion=references
        ),
    ],
    base: Base = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove versions: all of them, or none. `codi gc` deletes their files."""
    with Catalog.open(base=base) as catalog:
        removal = catalog.remove(refs)
    names = [row.ref for row in removal.rows]
    lines = [f"Removed {', '.join(names)} for base {removal.base}; `codi gc` deletes the files."]
    for task, row in removal.latest.items():
        now = f"is now {row.ref} (score {cell(row.score)})" if row else "is removed: no version is left"
        lines.append(f"{task}:{LATEST} {now}.")
    latest = {task: row.ref if row else None for task, row in removal.latest.items()}
    Output(json, quiet).result({"removed": names, "base": removal.base, "latest": latest}, "\n".join(lines))
