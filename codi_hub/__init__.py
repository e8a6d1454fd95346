"""CoDi Hub: few-step conditional adapters on one frozen latent diffusion or flow model.

Public names are imported when they are first used, so that importing the package (and `codi list`) imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codi_hub.catalog import Catalog
    from codi_hub.config.distill import DistillConfig
    from codi_hub.config.evaluate import EvalOptions
    from codi_hub.config.export import ExportOptions
    from codi_hub.config.run import RunOptions
    from codi_hub.errors import CodiError, Conflict, InvalidInput, Mismatch, NotFound, UsageError
    from codi_hub.hub import Hub
    from codi_hub.reports import DistillResult, EvalReport, ExportResult, JobsReport, RunReport

__version__ = "0.1.0"

_MODULES = {
    "Catalog": "catalog",
    "CodiError": "errors",
    "Conflict": "errors",
    "DistillConfig": "config.distill",
    "DistillResult": "reports",
    "EvalOptions": "config.evaluate",
    "EvalReport": "reports",
    "ExportOptions": "config.export",
    "ExportResult": "reports",
    "Hub": "hub",
    "InvalidInput": "errors",
    "JobsReport": "reports",
    "Mismatch": "errors",
    "NotFound": "errors",
    "RunOptions": "config.run",
    "RunReport": "reports",
    "UsageError": "errors",
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
