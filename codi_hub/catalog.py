"""The catalogue: tasks, bases, adapter versions, runs and the state of the registry. Importing it needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from codi_hub.config.base import BaseOptions
from codi_hub.errors import CodiError, Conflict, Mismatch, NotFound, UsageError

if TYPE_CHECKING:
    from codi_hub.backbones.fingerprint import Fingerprint
    from codi_hub.config.distill import DistillConfig
    from codi_hub.record import AdapterRecord
    from codi_hub.registry import AdapterRow, BaseRow, Garbage, Problem, Recovery, Registry, Removal, TaskRow
    from codi_hub.tasks import Task

CARD = "README.md"  # of an adapter's files
MAX_NAMES = 20  # of tasks in a message
PROBE_SIZE = 64  # px, of the pair that is read to check training data


class Catalog:
    """Look up and register adapters, tasks and bases. The registry is opened by the first method that needs it."""

    def __init__(self, home: Path | None = None, base: str | None = None) -> None:
        self._home = home
        self._base = base

    @classmethod
    def open(cls, home: Path | str | None = None, base: str | None = None) -> Self:
        """Return a catalogue.

        Args:
            home: state folder; default CODI_HOME, else the user's data folder.
            base: name of the base to use; default the base in use.
        """
        return cls(Path(home) if home else None, base)

    @cached_property
    def registry(self) -> Registry:
        """The open registry. Raises CodiError where it cannot be opened."""
        from codi_hub.registry import Registry

        return Registry.open(self._home)

    def close(self) -> None:
        """Close the registry, if it was opened."""
        if "registry" in self.__dict__:
            self.registry.close()
            del self.registry

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- adapters

    def list(
        self, task: str | None = None, base: str | None = None, limit: int | None = None, offset: int = 0
    ) -> Sequence[AdapterRow]:
        """Return all versions, or those of one task or base, at most `limit`. Raises NotFound for an unknown name."""
        rows = self.registry.adapters.list(task=task, base=base or self._base, limit=limit, offset=offset)
        if not rows and task is not None:
            self.task(task)
        if not rows and base is not None:
            self.registry.bases.get(base)
        return rows

    def show(self, ref: str) -> dict[str, Any]:
        """Return all fields of an adapter, task or base; `type` says which it is.

        An adapter comes with its `method` (such as "pe-codi" or "regression"), its record as `config`, and its card.

        Raises:
            UsageError: not a reference. NotFound: no adapter, task or base of that name.
        """
        try:
            return self._show_adapter(self.registry.adapters.resolve(ref, base=self._base))
        except NotFound:
            if ":" in ref:
                raise
        if self._task(ref):
            return self.show_task(ref)
        if ref in {row.name for row in self.bases()}:
            return {"type": "base"} | asdict(self.registry.bases.get(ref))
        raise NotFound(
            f"no adapter, task or base is called {ref!r}; see `codi list`, `codi task list`, `codi base list`"
        )

    def card(self, row: AdapterRow) -> str | None:
        """Return an adapter's card as it was registered; None for one without."""
        adapters = self.registry.adapters
        return adapters.file(row, CARD).read_text(encoding="utf-8") if CARD in adapters.files(row) else None

    def _show_adapter(self, row: AdapterRow) -> dict[str, Any]:
        from codi_hub.record import RECORD, read_record

        adapters = self.registry.adapters
        files = {name: str(adapters.file(row, name)) for name in adapters.files(row)}
        record = read_record(Path(files[RECORD]))
        labels = {"method": record.method, "loss": record.loss}
        more = {"score": row.score, "parent": row.parent, "created": row.created, "files": files}
        config = record.model_dump(mode="json")
        return {"type": "adapter"} | adapter_json(row) | labels | more | {"config": config, "card": self.card(row)}

    def tag(self, ref: str, name: str, remove: bool = False) -> AdapterRow:
        """Point a tag to a version, or remove it; return that version. Raises NotFound or UsageError."""
        change = self.registry.adapters.untag if remove else self.registry.adapters.tag
        return change(ref, name, self._base)

    def copy(self, ref: str, task: str) -> tuple[AdapterRow, bool]:
        """Add an adapter as the next version of another task; return the version, and whether it is new.

        Raises:
            Mismatch: the tasks are variants of different built-in tasks. And what `Adapters.copy` raises.
        """
        source = self.registry.adapters.resolve(ref, self._base)
        like, wanted = self.task(source.task)["like"], self.task(task)["like"]
        if like != wanted:
            raise Mismatch(
                f"{source.ref} was trained for a task like {like}, and {task} is like {wanted}: copy it to a task like "
                f"{like} (register one with `codi task add`)"
            )
        return self.registry.adapters.copy(source.ref, task, source.base)

    def remove(self, refs: Sequence[str]) -> Removal:
        """Remove versions, all of them or none; `collect` deletes their files. See `Adapters.remove`."""
        return self.registry.adapters.remove(refs, self._base)

    # ---- tasks

    def task_list(self) -> Sequence[dict[str, Any]]:
        """Return built-in and registered tasks sorted by name: `name`, `like`, `options`, `builtin`."""
        from codi_hub import tasks

        known = {row.name: _registered_json(row) for row in self.registry.tasks.list()}
        known |= {name: _builtin_json(name) for name in tasks.builtin() if _is_builtin(known.get(name), name)}
        return [known[name] for name in sorted(known)]

    def task(self, name: str) -> dict[str, Any]:
        """Return one entry of `task_list`. Raises NotFound, naming tasks that exist."""
        if entry := self._task(name):
            return entry
        names = [entry["name"] for entry in self.task_list()]
        there = ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if names[MAX_NAMES:] else "")
        raise NotFound(f"no task {name!r}; there are {there} (register one with `codi task add`)")

    def _task(self, name: str) -> dict[str, Any] | None:
        from codi_hub import tasks

        row = self.registry.tasks.get(name)
        entry = _registered_json(row) if row else None
        return _builtin_json(name) if name in tasks.builtin() and _is_builtin(entry, name) else entry

    def show_task(self, name: str) -> dict[str, Any]:
        """Return a task with its summary, the value of every option, and its adapters."""
        entry = self.task(name)
        task = self.load_task(name)
        return (
            {"type": "task"}
            | entry
            | {
                "summary": task.summary,
                "settings": task.options.model_dump(mode="json"),
                "adapters": [row.ref for row in self.registry.adapters.list(task=name)],
            }
        )

    def load_task(self, name: str, overrides: dict[str, Any] | None = None) -> Task:
        """Return the task object; `overrides` replace its registered options. Raises NotFound or UsageError."""
        from codi_hub import tasks

        entry = self.task(name)
        return tasks.load(entry["like"], {**entry["options"], **(overrides or {})})

    def distill_config(
        self, name: str, *layers: Mapping[str, Any], preset: Mapping[str, Any] | None = None
    ) -> DistillConfig:
        """Return the configuration of nested layers, the last on top, over a preset and what the task prefers.

        Args:
            preset: a layer whose batch and learning rate hold on small bases alone, see `read_preset`.
        """
        from codi_hub.training.folder import compose

        return compose(name, self.load_task(name).distill, layers, self.registry.home, preset)

    def add_task(
        self, name: str, like: str | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], bool]:
        """Register a variant of a task; return its entry of `task_list`, and whether it is new.

        A built-in name without options, and a task that is registered already, change nothing.

        Args:
            like: a built-in or a registered task; a built-in `name` needs none.
            options: those that differ from the defaults; a variant of a variant has the options of both.

        Raises:
            UsageError: a name, a template or options that are not allowed.
            Conflict: another task of that name, or options for a built-in one.
            NotFound, InvalidInput: training data (the option `data`) that the task cannot use.
        """
        from codi_hub import tasks
        from codi_hub.data.sources import open_source

        builtin, options = tasks.builtin(), options or {}
        if name in builtin:
            entry = self.task(name)
            if like not in (None, name):
                raise Conflict(f"{name!r} is a built-in task and cannot be like {like!r}; choose another name")
            if not options and entry["builtin"]:
                return entry, False
            if entry["builtin"]:
                raise Conflict(
                    f"task {name!r} is built in and takes no options: register a variant, like {name}, under another "
                    "name with `codi task add`"
                )
            like = name  # with options of its own since the first edition
        elif like is None:
            raise UsageError(f"like: say which task {name!r} is a variant of, one of {', '.join(builtin)}")
        else:
            parent = self.task(like)
            like, options = parent["like"], {**parent["options"], **options}
        task = tasks.load(like, options)
        if task.options.data:
            open_source(task.options.data, task, size=PROBE_SIZE)
        stored = task.options.model_dump(mode="json", exclude_unset=True)
        row, created = self.registry.tasks.add(name, like, stored)
        return _registered_json(row), created

    def remove_task(self, name: str) -> None:
        """Delete a registered task; its adapters stay. Raises NotFound, or Conflict for a built-in one."""
        if self.task(name)["builtin"]:
            raise Conflict(f"{name!r} is a built-in task and cannot be removed")
        self.registry.tasks.remove(name)

    # ---- bases

    def bases(self) -> Sequence[BaseRow]:
        """Return every base, sorted by name."""
        return self.registry.bases.list()

    def add_base(self, name: str, base: str | Path | BaseOptions) -> BaseRow:
        """Register a base under `name`, with its fingerprint (this loads torch).

        A name that is taken by the same weights is pointed to where they are now, with the options given now.

        Args:
            base: its options, or its source alone: a diffusers folder, a safetensors file, or a hub id.

        Raises:
            NotFound, InvalidInput, UsageError: a source that is not there, not a base model, or lacks something.
            Mismatch: see `probe`. And what `Bases.add` raises.
        """
        options = (base if isinstance(base, BaseOptions) else BaseOptions(source=base)).absolute()
        from codi_hub.registry.references import check_base

        check_base(name)  # before weights are read
        _check_source(options.source)
        from codi_hub.backbones import locate
        from codi_hub.backbones.card import recognised, set_sampling
        from codi_hub.backbones.probe import probe

        located = locate(options)
        loaded = located.load_as_stored()
        probe(loaded, release=True)
        mark, options = loaded.fingerprint, recognised(located.files, located.options)
        set_sampling(loaded, options)  # refused here; not part of the fingerprint, which is the files'
        existing = next((row for row in self.bases() if row.name == name), None)
        moved = existing is not None and _same_weights(existing, mark)
        return self.registry.bases.add(
            name,
            options.source,
            family=mark.family,
            sketch=mark.sketch,
            options=options.stored(),
            card=options.card() or (existing.card if existing and moved else {}),
            replace=moved,
        )

    def use_base(self, name: str) -> BaseRow:
        """Make a base the default of every command. Raises NotFound."""
        return self.registry.bases.use(name)

    def remove_base(self, name: str) -> None:
        """Delete a base's row; its files stay. Raises NotFound, or Conflict for one that cannot go."""
        self.registry.bases.remove(name)

    # ---- runs

    def show_run(self, run_id: int) -> dict[str, Any]:
        """Return a run of the log with its `items`, in the order in which they were computed.

        A run of one shard is shown together with all others of its plan: `parts` are their numbers, shards and states,
        `items` has the last record of every output, `ok` and `failed` count these.

        Raises:
            NotFound: there is no such run.
        """
        runs = self.registry.runs
        run = runs.get(run_id)
        if run.plan is None:
            return asdict(run) | {"items": [asdict(item) for item in runs.items(run_id)]}
        parts = runs.parts(run.plan)
        last = {item.output: item for part in parts for item in runs.items(part.id)}
        counts = {status: sum(item.status == status for item in last.values()) for status in ("ok", "failed")}
        listed = [{"id": part.id, "shard": part.shard, "status": part.status} for part in parts]
        return asdict(run) | counts | {"parts": listed, "items": [asdict(item) for item in last.values()]}

    # ---- state

    def verify(self) -> Sequence[Problem]:
        """Rehash every file; an empty list means that files and records agree."""
        return self.registry.verify()

    def recover(self) -> Recovery:
        """Register the adapters that lie in the store and in run folders again, after a database was lost."""

        def score(record: AdapterRecord) -> float | None:
            try:
                return self.load_task(record.task).latest_score(record.metrics)
            except CodiError:  # a task that was lost as well
                return None

        return self.registry.adapters.recover(self.registry.home / "distill", score)

    def collect(self, *, dry_run: bool = False) -> Sequence[Garbage]:
        """Delete the files that no adapter needs, or with `dry_run` only return them. Raises CodiError."""
        return self.registry.collect(dry_run=dry_run)

    def doctor(self) -> Sequence[dict[str, Any]]:
        """Check Python, torch, the device, the home, the registry and the bundled models; see `doctor.diagnose`."""
        from codi_hub.doctor import diagnose

        return [*diagnose(lambda: self.registry)]


def _builtin_json(name: str) -> dict[str, Any]:
    return {"name": name, "like": name, "options": {}, "builtin": True}


def _registered_json(row: TaskRow) -> dict[str, Any]:
    return {"name": row.name, "like": row.like, "options": row.options, "builtin": False}


def _is_builtin(registered: dict[str, Any] | None, name: str) -> bool:
    """Return whether a built-in name has no row, or one without options, which the first edition could add."""
    return registered is None or (registered["like"], registered["options"]) == (name, {})


def adapter_json(row: AdapterRow) -> dict[str, Any]:
    """Return an entry of `codi list --json`."""
    keys = (
        "task",
        "version",
        "ref",
        "base",
        "kind",
        "method",
        "steps",
        "parameters",
        "bytes",
        "sha256",
        "status",
        "bundled",
    )
    return {key: getattr(row, key) for key in keys} | {"metrics": row.metrics, "tags": list(row.tags)}


def _check_source(source: str) -> None:
    """Raise NotFound for what is neither there nor a hub id, InvalidInput for a pickle; needs no torch."""
    from codi_hub.backbones.weights import refuse_pickle
    from codi_hub.data.sources import HUB_ID

    refuse_pickle(Path(source))
    if not Path(source).exists() and (source.startswith((".", "/", "~")) or not HUB_ID.fullmatch(source)):
        raise NotFound(
            f"no file or folder {source}; a base is a diffusers folder, a .safetensors file or a hub id such as "
            "owner/name"
        )


def _same_weights(row: BaseRow, fingerprint: Fingerprint) -> bool:
    from codi_hub.backbones.fingerprint import check_unchanged

    try:
        check_unchanged(row, fingerprint)
    except Mismatch:
        return False
    return True
