"""Registration of an adapter that was made elsewhere: a folder or a zip, or what a hub or a store has."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from codi_hub.catalog import Catalog
from codi_hub.config.share import InstallOptions
from codi_hub.errors import CodiError, Mismatch, one_line, prefixed
from codi_hub.interop import package
from codi_hub.interop.package import Source
from codi_hub.operations.context import Context
from codi_hub.partial import clean, temporary
from codi_hub.record import RECORD, AdapterRecord, read_record
from codi_hub.registry import AdapterRow, BaseRow
from codi_hub.reports import InstallResult


@dataclass(frozen=True)
class Place:
    """Where an adapter is to be registered: its task, the built-in task that this is like, and its base."""

    task: str
    like: str
    base: BaseRow


def install(context: Context, path: Path, options: InstallOptions) -> InstallResult:
    """Register the adapter of a folder or zip; see `Hub.install`."""
    return arrive(context, lambda scratch: package.open_source(path.expanduser(), scratch), options)


def arrive(
    context: Context, source_in: Callable[[Path], Source], options: InstallOptions, *, dry_run: bool = False
) -> InstallResult:
    """Check the adapter of a source and register it; all of it or nothing.

    Its record is fetched and checked first: what does not fit, or is there already, is not downloaded.

    Args:
        context: of the Hub.
        source_in: returns the source; it is given an empty folder, which is removed in the end.
        options: task, tag and base.
        dry_run: check the record alone, and register nothing.

    Raises:
        CodiError: it cannot be used, in one line; nothing is registered then.
    """
    from codi_hub.registry.references import check_tag

    catalog = context.catalog
    if options.name is not None:
        check_tag(options.name)
    home = catalog.registry.home
    clean(home)
    with temporary(home, Path.mkdir) as scratch:
        source = source_in(scratch)
        fetched = source.fetch(RECORD)
        with prefixed(source.name):
            record = read_record(fetched)
        place = place_for(catalog, record, source.name, options.replace(base=options.base or context.base))
        known = record.weights and catalog.registry.adapters.holding(record.weights, place.task, place.base.name)
        if dry_run or known:
            row, created = known or None, not known
        else:
            row, created = _register(catalog, source, record, place, options.allow_base_mismatch)
    if row and options.name and not dry_run:
        row = catalog.registry.adapters.tag(row.ref, options.name, row.base)
    return InstallResult(
        task=place.task,
        adapter=row.ref if row else None,
        base=place.base.name,
        kind=record.kind,
        sha256=record.weights or "",
        source=source.name,
        created=created and not dry_run,
        tags=list(row.tags) if row else [],
    )


def place_for(catalog: Catalog, record: AdapterRecord, name: str, options: InstallOptions) -> Place:
    """Return where an adapter belongs.

    Args:
        catalog: tasks and bases.
        record: of the adapter.
        name: of the adapter, for messages.
        options: the task and the base that were asked for.

    Raises:
        NotFound: no such task or base. Mismatch: the adapter is for another task or base.
    """
    from codi_hub.adapters import format

    base = catalog.registry.bases.get(options.base)
    _check_base(catalog, record, base, options.allow_base_mismatch)
    trained, kind = one_line(record.task, 40), None
    with suppress(CodiError):
        kind = catalog.task(record.task)["like"]
    task = options.task or record.task
    if kind is None and options.task is None:
        raise Mismatch(
            f"task: {name} was trained for {trained!r}, which is not registered here: register it with `codi task add "
            f"{trained} --like TEMPLATE`, or name a task like it"
        )
    like = catalog.task(task)["like"]
    if kind not in (None, like):
        raise Mismatch(
            f"task {task}: it is like {like}, and {name} was trained for a task like {kind}: name such a task"
        )
    format.check_condition(record, name, like, catalog.load_task(task).condition_channels)
    return Place(task, like, base)


def _check_base(catalog: Catalog, record: AdapterRecord, base: BaseRow, allow_mismatch: bool) -> None:
    from codi_hub.backbones.fingerprint import Fingerprint

    trained = one_line(record.base.name, 40)

    def check(row: BaseRow) -> None:
        mark = Fingerprint(row.family, row.sketch or {})
        mark.check(record.base.family, record.base.sketch, allow_fine_tune=allow_mismatch)

    try:
        check(base)
    except Mismatch as error:
        fitting = []
        for other in catalog.bases():
            with suppress(Mismatch):
                check(other)
                fitting.append(other.name)
        hint = f"it fits {', '.join(fitting)}; name one of them" if fitting else str(error)
        raise Mismatch(f"base {base.name}: the adapter was distilled for another base, {trained}: {hint}") from error


def _register(
    catalog: Catalog, source: Source, record: AdapterRecord, place: Place, allow_mismatch: bool
) -> tuple[AdapterRow, bool]:
    from codi_hub.adapters import format
    from codi_hub.backbones.fingerprint import Fingerprint

    files = {name: source.fetch(name) for name in package.FILES}
    with prefixed(source.name):
        package.check_content(files, record.weights)
        mark = Fingerprint(place.base.family, place.base.sketch or {})
        format.check(record, files[format.WEIGHTS], mark, allow_base_mismatch=allow_mismatch)
        score = _score(catalog, place.task, record)
        return catalog.registry.adapters.install(files, record, task=place.task, base=place.base.name, score=score)


def _score(catalog: Catalog, task: str, record: AdapterRecord) -> float | None:
    """Return the held-out score that a record of someone else's states; None where it states none that can be read."""
    try:
        return catalog.load_task(task).latest_score(record.metrics)
    except (CodiError, TypeError, ValueError, ArithmeticError):
        return None
