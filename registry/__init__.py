"""The registry: bases, tasks, adapter versions, tags and runs in SQL; weights in files named by their hash."""

from codi_hub.registry.registry import Registry
from codi_hub.registry.rows import (
    AdapterRow,
    BaseRow,
    Garbage,
    OutputRow,
    Problem,
    Recovery,
    Removal,
    RunItemRow,
    RunRow,
    TaskRow,
)

__all__ = [
    "AdapterRow",
    "BaseRow",
    "Garbage",
    "OutputRow",
    "Problem",
    "Recovery",
    "Registry",
    "Removal",
    "RunItemRow",
    "RunRow",
    "TaskRow",
]
