"""Options of `codi export` and `Hub.export`."""

from __future__ import annotations

from pathlib import Path

from codi_hub.config.model import Options, option
from codi_hub.config.values import ExportFormat, ExportPrecision


class ExportOptions(Options):
    """How an adapter is written for another tool."""

    out: Path = option(..., "-o", "--out")
    """Folder to write."""
    format: ExportFormat = option("diffusers", "--format")
    """Format: diffusers is the folder of a ControlNet."""
    dtype: ExportPrecision = option("fp16", "--dtype")
    """Precision of the weights."""
    overwrite: bool = option(False, "--overwrite")
    """Replace an earlier export."""
