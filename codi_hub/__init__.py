"""CoDi Hub: few-step conditional adapters on one frozen latent diffusion or flow model.

Public names are imported when they are first used, so that importing the package (and `codi list`) imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codi_hub.catalog import Catalog
    from codi_hub.config.distill import DistillConfig
    from codi_hub.config.options import EvalOptions, ExportOptions, ImportOptions, RunOptions
    from codi_hub.config.share import InstallOptions, PullOptions, PushOptions
    from codi_hub.errors import CodiError, Conflict, InvalidInput, Mismatch, NotFound, UsageError
    from codi_hub.hub import Hub
    from codi_hub.reports import (
        DistillResult,
        EvalReport,
        ExportResult,
        ImportResult,
        InstallResult,
        JobsReport,
        PushResult,
        RunReport,
    )

__version__ = "0.1.0"

_NAMES = {  # module -> its public names
    "catalog": ("Catalog",),
    "config.distill": ("DistillConfig",),
    "config.options": ("EvalOptions", "ExportOptions", "ImportOptions", "RunOptions"),
    "config.share": ("InstallOptions", "PullOptions", "PushOptions"),
    "errors": ("CodiError", "Conflict", "InvalidInput", "Mismatch", "NotFound", "UsageError"),
    "hub": ("Hub",),
    "reports": (
        "DistillResult",
        "EvalReport",
        "ExportResult",
        "ImportResult",
        "InstallResult",
        "JobsReport",
        "PushResult",
        "RunReport",
    ),
}

__all__ = [
    "Catalog",
    "CodiError",
    "Conflict",
    "DistillConfig",
    "DistillResult",
    "EvalOptions",
    "EvalReport",
    "ExportOptions",
    "ExportResult",
    "Hub",
    "ImportOptions",
    "ImportResult",
    "InstallOptions",
    "InstallResult",
    "InvalidInput",
    "JobsReport",
    "Mismatch",
    "NotFound",
    "PullOptions",
    "PushOptions",
    "PushResult",
    "RunOptions",
    "RunReport",
    "UsageError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    for module, names in _NAMES.items():
        if name in names:
            return getattr(importlib.import_module(f"codi_hub.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
