"""What the processes of a run load: the planned run without its items, and where its registry is."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_hub.catalog import Catalog
from codi_hub.events import OnEvent
from codi_hub.folders.making import Done, Maker, RunSettings
from codi_hub.folders.plan import Item
from codi_hub.folders.rows import RegistryLog
from codi_hub.inference.models import ModelCache
from codi_hub.operations.context import Context

if TYPE_CHECKING:
    from codi_hub.operations.runs import PlannedRun


@dataclass(frozen=True)
class WorkerSetup:
    """How a worker of a planned run gets its registry and its networks.

    Attributes:
        home: state folder.
        planned: the run, without items.
        settings: of the run.
        log: of the parent; the worker records into the same run, whose number alone is pickled.
    """

    home: Path
    planned: PlannedRun
    settings: RunSettings
    log: RegistryLog | int | None

    def __getstate__(self) -> dict[str, Any]:
        run_id = self.log.run_id if isinstance(self.log, RegistryLog) else self.log
        return {**vars(self), "log": run_id}

    def maker(
        self, device: str, items: dict[int, Item], done: Done, stop: threading.Event, on_event: OnEvent
    ) -> tuple[Maker, RegistryLog]:
        """Return what makes items on a device, with its networks loaded, and its log. Raises CodiError."""
        from codi_hub.operations.runs import load_generator

        catalog = Catalog.open(self.home, self.planned.row.base)
        context = Context(catalog, ModelCache(lambda: catalog.registry), self.planned.row.base)
        log = RegistryLog(catalog.registry.runs, self.planned.row, self.planned.recipe, [])
        log.join(self.log.run_id if isinstance(self.log, RegistryLog) else self.log)
        generator = load_generator(context, self.planned, on_event, device)
        maker = Maker(items, self.planned.task, lambda: generator, self.settings, log=log, done=done, stop=stop)
        return maker, log
