"""What works on this machine, and what does not."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_hub.errors import CodiError, NotFound

if TYPE_CHECKING:
    from codi_hub.catalog import Catalog


def diagnose(catalog: Catalog) -> Iterator[dict[str, Any]]:
    """One `{"check", "ok", "detail"}` per part; none can fail the others."""

    def bundled() -> str:
        rows = catalog.registry.adapters.bundled()
        bases = [row.name for row in catalog.bases() if row.bundled]
        if not bases:
            raise NotFound("no base is bundled; add one with `codi base add NAME FOLDER` and `codi base use NAME`")
        for row in rows:
            catalog.registry.adapters.file(row, "adapter.safetensors")
        return f"base {', '.join(bases)}; adapters {', '.join(row.ref for row in rows) or 'none'}"

    checks: dict[str, Callable[[], str]] = {
        "python": lambda: f"{platform.python_version()} on {platform.platform()}",
        "codi-hub": lambda: version("codi-hub"),
        "torch": _torch_version,
        "device": _device,
        "home": lambda: _writable(catalog.registry.home),
        "registry": lambda: f"{catalog.registry.adapters.count()} adapters, {len(catalog.bases())} bases",
        "bundled": bundled,
    }
    for name, check in checks.items():
        try:
            ok, detail = True, check()
        except (CodiError, ImportError, OSError) as error:
            ok, detail = False, str(error)
        yield {"check": name, "ok": ok, "detail": detail}


def _torch_version() -> str:
    import torch

    return f"{torch.__version__}, {torch.get_num_threads()} threads"


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return f"cuda: {torch.cuda.get_device_name()}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _writable(home: Path) -> str:
    with tempfile.TemporaryFile(dir=home):
        return str(home)
