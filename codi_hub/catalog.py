"""The torch-free half of the Hub: what exists. Tasks, bases, adapter versions, and whether all is well."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from codi_hub.errors import Conflict, InvalidInput, Mismatch, NotFound, UsageError

if TYPE_CHECKING:
    from codi_hub.config.options import DistillOptions
    from codi_hub.registry import AdapterRow, BaseRow, Garbage, Problem, Registry, Removal, TaskRow
    from codi_hub.tasks import Task

NAMED = 20  # tasks that a message names, at most
PROBED_SIZE = 64  # px, of the one pair that is made to see whether data can be used


class Catalog:
    """Looks things up and registers them; `Hub` adds to it what needs torch. The registry opens when first asked."""

    def __init__(self, home: Path | None = None, base: str | None = None) -> None:
        self._home = home
        self._base = base

    @classmethod
    def open(cls, home: Path | str | None = None, base: str | None = None) -> Self:
        """`home`: state folder (default: CODI_HOME, or the user's data folder). `base`: instead of the one in use."""
        return cls(Path(home) if home else None, base)

    @cached_property
    def registry(self) -> Registry:
        from codi_hub.registry import Registry

        return Registry.open(self._home)

    def close(self) -> None:
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
        """Every version, or those of one task or base, `limit` at most. Raises NotFound for one that does not exist."""
        rows = self.registry.adapters(task=task, base=base or self._base, limit=limit, offset=offset)
        if not rows and task is not None:
            self.task(task)
        if not rows and base is not None:
            self.registry.base(base)
        return rows

    def show(self, ref: str) -> dict[str, Any]:
        """One adapter, task or base in full, told apart by `type`. An adapter comes with its description and card."""
        try:
            return self._show_adapter(self.registry.resolve(ref, base=self._base))
        except NotFound:
            if ":" in ref:
                raise
        if self._task(ref):
            return self.show_task(ref)
        if ref in {row.name for row in self.bases()}:
            return {"type": "base"} | asdict(self.registry.base(ref))
        raise NotFound(
            f"no adapter, task or base is called {ref!r}; see `codi list`, `codi task list`, `codi base list`"
        )

    def _show_adapter(self, row: AdapterRow) -> dict[str, Any]:
        from codi_hub.config.options import method_of

        config = json.loads(self.registry.file(row, "adapter.json").read_text(encoding="utf-8"))
        names = self.registry.files(row)
        card = self.registry.file(row, "README.md").read_text(encoding="utf-8") if "README.md" in names else None
        return (
            {"type": "adapter"}
            | adapter_json(row)
            | {"method": method_of(config.get("training", {})), "score": row.score, "parent": row.parent}
            | {
                "created": str(row.created),
                "files": {name: str(self.registry.file(row, name)) for name in names},
                "config": config,
                "card": card,
            }
        )

    def tag(self, ref: str, name: str, remove: bool = False) -> AdapterRow:
        """Points a tag to a version, or takes it away again; the version. Raises NotFound or UsageError."""
        change = self.registry.untag if remove else self.registry.tag
        return change(ref, name, self._base)

    def copy(self, ref: str, task: str) -> tuple[AdapterRow, bool]:
        """An adapter as the next version of another task with the same template; the version, and whether it is new.

        Raises:
            Mismatch: tasks of different kinds. And what `Registry.copy_adapter` raises.
        """
        source = self.registry.resolve(ref, self._base)
        like, wanted = self.task(source.task)["like"], self.task(task)["like"]
        if like != wanted:
            raise Mismatch(
                f"{source.ref} was made for a task like {like}, and {task} is like {wanted}: copy it to one like "
                f"{like} (`codi task add NAME --like {like}`)"
            )
        return self.registry.copy_adapter(source.ref, task, source.base)

    def remove(self, refs: Sequence[str]) -> Removal:
        """Removes versions, all of them or none; their files go with `collect`. See `Registry.remove_adapters`."""
        return self.registry.remove_adapters(refs, self._base)

    # ---- tasks

    def task_list(self) -> Sequence[dict[str, Any]]:
        """Built-in and registered tasks by name: `name`, `like`, `options`, `builtin`."""
        from codi_hub import tasks

        known = {name: _builtin_json(name) for name in tasks.builtin()}
        known |= {row.name: _task_json(row) for row in self.registry.tasks()}
        return [known[name] for name in sorted(known)]

    def task(self, name: str) -> dict[str, Any]:
        """One entry of `task_list`. Raises NotFound with names that there are."""
        if found := self._task(name):
            return found
        names = [entry["name"] for entry in self.task_list()]
        there = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if names[NAMED:] else "")
        raise NotFound(f"no task {name!r}; there are {there} (register one with `codi task add`)")

    def _task(self, name: str) -> dict[str, Any] | None:
        from codi_hub import tasks

        if row := self.registry.task(name):
            return _task_json(row)
        return _builtin_json(name) if name in tasks.builtin() else None

    def show_task(self, name: str) -> dict[str, Any]:
        """A task with what it is for, every option's value in force, and its adapters."""
        entry = self.task(name)
        task = self.load_task(name)
        return (
            {"type": "task"}
            | entry
            | {
                "summary": task.summary,
                "settings": task.options.model_dump(mode="json"),
                "adapters": [row.ref for row in self.registry.adapters(task=name)],
            }
        )

    def load_task(self, name: str, overrides: dict[str, Any] | None = None) -> Task:
        """The task object, its registered options overridden by `overrides`. Raises NotFound or UsageError."""
        from codi_hub import tasks

        entry = self.task(name)
        return tasks.load(entry["like"], {**entry["options"], **(overrides or {})})

    def distill_options(self, name: str, given: dict[str, Any]) -> DistillOptions:
        """What was given, over what the task prefers, over the defaults."""
        from codi_hub.config.options import READS, DistillOptions

        preferred = dict(self.load_task(name).distill)
        if given.get("method") or given.get("parent"):  # they say themselves what is trained
            preferred.pop("kind", None)
        if given.get("method") in READS:  # which have no guidance
            preferred.pop("guidance", None)
        return DistillOptions(**{**preferred, **given})

    def add_task(self, name: str, like: str | None = None, options: dict[str, Any] | None = None) -> tuple[Any, bool]:
        """Registers a task; `(row, created)`. `like` may be a built-in or a registered task, and defaults to `name`.

        Raises:
            UsageError, Conflict: a name, a template or options that cannot be.
            NotFound, InvalidInput: training data (the option `data`) that the task cannot use.
        """
        from codi_hub import tasks
        from codi_hub.data.sources import open_source

        builtin = tasks.builtin()
        if like is None and name not in builtin:
            raise UsageError(f"say which task {name!r} is like: --like {'|'.join(builtin)}")
        if like not in (None, name) and name in builtin:
            raise Conflict(f"{name!r} is a built-in task and cannot be like {like!r}; choose another name")
        like, options = like or name, options or {}
        if (
            like != name or name not in builtin
        ):  # a variant of a variant is one of the built-in task, with both's options
            parent = self.task(like)
            like, options = parent["like"], {**parent["options"], **options}
        task = tasks.load(like, options)
        if task.options.data:
            open_source(task.options.data, task, size=PROBED_SIZE)
        return self.registry.add_task(name, like, task.options.model_dump(mode="json", exclude_unset=True))

    def remove_task(self, name: str) -> None:
        """Forgets a registered task. Raises Conflict for a built-in one."""
        if self.task(name)["builtin"]:
            raise Conflict(f"{name!r} is a built-in task and cannot be removed")
        self.registry.remove_task(name)

    # ---- bases

    def bases(self) -> Sequence[BaseRow]:
        return self.registry.bases()

    def add_base(self, name: str, source: str | Path) -> BaseRow:
        """Registers a local diffusers folder, or a hub id, under `name`, with its fingerprint (this loads torch)."""
        source = _base_source(str(source))
        from codi_hub.backbones.unet import FrozenBase

        mark = FrozenBase.load(source).fingerprint
        return self.registry.add_base(name, source, family=mark.family, sketch=mark.sketch)

    def use_base(self, name: str) -> BaseRow:
        """Makes it the base of every command that names none."""
        self.registry.use_base(name)
        return self.registry.base(name)

    def remove_base(self, name: str) -> None:
        self.registry.remove_base(name)

    # ---- health

    def verify(self) -> Sequence[Problem]:
        """Rehashes every file; an empty list means that files and records agree."""
        return self.registry.verify()

    def collect(self, *, dry_run: bool = False) -> Sequence[Garbage]:
        """Deletes the files that nothing needs any more, or with `dry_run` only says which. Raises CodiError."""
        return self.registry.collect(dry_run=dry_run)

    def doctor(self) -> Sequence[dict[str, Any]]:
        """What works on this machine: one `{"check", "ok", "detail"}` each, none of which can fail the others."""
        from codi_hub.doctor import diagnose

        return [*diagnose(self)]


def _builtin_json(name: str) -> dict[str, Any]:
    return {"name": name, "like": name, "options": {}, "builtin": True}


def _task_json(row: TaskRow) -> dict[str, Any]:
    return {"name": row.name, "like": row.like, "options": row.options, "builtin": row.builtin}


def adapter_json(row: AdapterRow) -> dict[str, Any]:
    """An entry of `codi list --json`."""
    keys = ("task", "version", "ref", "base", "kind", "steps", "parameters", "bytes", "sha256", "status", "bundled")
    return {key: getattr(row, key) for key in keys} | {"metrics": row.metrics, "tags": list(row.tags)}


def _base_source(source: str) -> str:
    """An absolute folder, or the hub id as it is. Raises NotFound or InvalidInput before anything heavy is loaded."""
    from codi_hub.data.sources import HUB_ID

    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "unet" / "config.json").is_file():
            raise InvalidInput(f"{source} is not a diffusers model folder: it has no unet/config.json")
        return str(path.resolve())
    if path.exists():
        raise InvalidInput(f"{source} is a file; a base is a diffusers folder or a hub id such as owner/name")
    if source.startswith((".", "/", "~")) or not HUB_ID.fullmatch(source):
        raise NotFound(f"no folder {source}; a base is a diffusers folder or a hub id such as owner/name")
    return source
