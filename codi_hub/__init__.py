"""CoDi Hub: few-step conditional adapters on one frozen latent diffusion or flow model.

Public names are imported when they are first used, so that importing the package (and `codi list`) imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codi_hub.catalog import Catalog
    from codi_hub.config.options import DistillOptions, EvalOptions, ExportOptions, RunOptions
    from codi_hub.errors import CodiError, Conflict, InvalidInput, Mismatch, NotFound, UsageError
    from codi_hub.hub import Hub
    from codi_hub.reports import DistillResult, EvalReport, ExportResult, JobsReport, RunReport

__version__ = "0.1.0"

_MODULES = {
    "Catalog": "catalog",
    "CodiError": "errors",
    "Conflict": "errors",
    "DistillOptions": "config.options",
    "DistillResult": "reports",
    "EvalOptions": "config.options",
    "EvalReport": "reports",
    "ExportOptions": "config.options",
    "ExportResult": "reports",
    "Hub": "hub",
    "InvalidInput": "errors",
    "JobsReport": "reports",
    "Mismatch": "errors",
    "NotFound": "errors",
    "RunOptions": "config.options",
    "RunReport": "reports",
    "UsageError": "errors",
}

__all__ = [
    "Catalog",
    "CodiError",
    "Conflict",
    "DistillOptions",
    "DistillResult",
    "EvalOptions",
    "EvalReport",
    "ExportOptions",
    "ExportResult",
    "Hub",
    "InvalidInput",
    "JobsReport",
    "Mismatch",
    "NotFound",
    "RunOptions",
    "RunReport",
    "UsageError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"codi_hub.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
