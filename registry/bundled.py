"""The models inside the package: registered from their manifest and used in place, without a copy in the store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select, update

from codi_hub.errors import InvalidInput
from codi_hub.registry import versions
from codi_hub.registry.models import READY, REPLACED, adapter, adapter_file, base, setting
from codi_hub.registry.rows import now

_SETTING = "bundled_manifest"


@dataclass(frozen=True)
class Manifest:
    """`manifest.json` of the bundle at `root`, with its sha256."""

    root: Path
    digest: str
    content: dict[str, Any]

    @classmethod
    def load(cls, root: Path) -> Manifest | None:
        """Read the manifest under `root`; None where nothing is bundled. Raises InvalidInput."""
        path = root / "manifest.json"
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            content = json.loads(data)
            content["base"]["name"], content["adapters"]
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(f"{path} is damaged ({error!r}); install CoDi Hub again") from error
        return cls(root, hashlib.sha256(data).hexdigest(), content)

    def files(self) -> Iterator[tuple[Path, str]]:
        """Yield every bundled file with its expected sha256."""
        parts = [self.content["base"], *self.content["adapters"], *self.content.get("others", [])]
        for part in parts:
            for name, recorded in part["files"].items():
                yield self.root / part["path"] / name, recorded if isinstance(recorded, str) else recorded["sha256"]

    def is_registered(self, connection: Connection) -> bool:
        """Return whether this very manifest was the last one registered."""
        query = select(setting.c.value).where(setting.c.name == _SETTING)
        return connection.scalar(query) == self.digest

    def register(self, connection: Connection) -> None:
        """Update the rows to agree with the manifest.

        Versions never change, so weights that differ from the registered ones become another version: the number in
        the manifest where it is free, else the next. The row of the replaced version stays, without files.

        Raises:
            InvalidInput: the manifest lacks a field.
        """
        try:
            base_id = self._register_base(connection)
            current = [self._register_adapter(connection, base_id, entry) for entry in self.content["adapters"]]
        except KeyError as error:
            raise InvalidInput(f"{self.root / 'manifest.json'} has no {error}; install CoDi Hub again") from error
        query = select(adapter).where(adapter.c.folder.is_not(None), adapter.c.id.not_in(current))
        replaced = connection.execute(query).all()
        for row in replaced:
            connection.execute(update(adapter).where(adapter.c.id == row.id).values(status=REPLACED))
            versions.drop_tags(connection, row.task, row.base_id, row.version)
        for row in connection.execute(select(adapter).where(adapter.c.id.in_(current)).order_by(adapter.c.version)):
            self._offer_latest(connection, row)
        for row in replaced:  # the bundle has no successor: one of the user's versions becomes the latest
            if versions.latest(connection, row.task, row.base_id) is None:
                versions.settle_latest(connection, row.task, row.base_id, row.metrics)
        versions.put(connection, setting, {"name": _SETTING}, {"value": self.digest})

    def _register_base(self, connection: Connection) -> int:
        entry = self.content["base"]
        values = {"source": entry["path"], "family": entry["family"], "sketch": entry.get("sketch"), "bundled": True}
        name, other = entry["name"], f"{entry['name']}-bundled"  # `other` where a base of the user's has the name
        rows = {row.name: row for row in connection.execute(select(base).where(base.c.name.in_([name, other])))}
        for row in rows.values():
            if row.bundled:
                connection.execute(update(base).where(base.c.id == row.id).values(values))
                return int(row.id)
        return versions.insert(connection, base, {"name": other if name in rows else name, "created": now()} | values)

    def _register_adapter(self, connection: Connection, base_id: int, entry: dict[str, Any]) -> int:
        weights = entry["files"]["adapter.safetensors"]
        key = (adapter.c.task == entry["task"], adapter.c.base_id == base_id)
        values = {
            "kind": entry["kind"],
            "steps": entry["steps"],
            "parameters": entry["parameters"],
            "bytes": weights["bytes"],
            "sha256": weights["sha256"],
            "status": READY,
            "folder": entry["path"],
            "metrics": versions.plain(entry.get("metrics") or {}),
            "score": versions.finite(entry.get("score")),
            "method": entry.get("method"),
        }
        same = select(adapter.c.id).where(*key, adapter.c.folder.is_not(None), adapter.c.sha256 == weights["sha256"])
        adapter_id = connection.scalar(same)
        if adapter_id is None:
            number_exists = connection.scalar(select(func.count()).where(*key, adapter.c.version == entry["version"]))
            version = versions.next_version(connection, entry["task"], base_id) if number_exists else entry["version"]
            named = {"task": entry["task"], "base_id": base_id, "version": version}
            adapter_id = versions.insert(
                connection, adapter, named | {"created": entry.get("created") or now()} | values
            )
        else:
            connection.execute(update(adapter).where(adapter.c.id == adapter_id).values(values))
        connection.execute(adapter_file.delete().where(adapter_file.c.adapter_id == adapter_id))
        rows = [{"adapter_id": adapter_id, "name": name} | recorded for name, recorded in entry["files"].items()]
        connection.execute(adapter_file.insert(), rows)
        return int(adapter_id)

    @staticmethod
    def _offer_latest(connection: Connection, row: Any) -> None:
        """Move `latest` to a bundled version only from another bundled one: the user's versions have precedence."""
        holder = versions.latest(connection, row.task, row.base_id)
        if holder is None or (holder.folder is not None and holder.id != row.id):
            versions.move_latest(connection, row, holder)
