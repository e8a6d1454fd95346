"""Check what works on this machine."""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_hub.errors import CodiError, NotFound

if TYPE_CHECKING:
    from codi_hub.registry import Registry


def diagnose(registry: Callable[[], Registry]) -> Iterator[dict[str, Any]]:
    """Yield one `{"check", "ok", "detail"}` per part; a check that fails does not stop the others.

    Args:
        registry: opens the registry, or returns the open one; called within the checks, since it can fail too.
    """
    checks: dict[str, Callable[[], str]] = {
        "python": lambda: f"{platform.python_version()} on {platform.platform()}",
        "codi-hub": lambda: version("codi-hub"),
        "torch": _torch_version,
        "device": _device,
        "home": lambda: _writable(registry().home),
        "registry": lambda: _counts(registry()),
        "store": lambda: _store(registry()),
        "bundled": lambda: _bundled(registry()),
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


def _counts(registry: Registry) -> str:
    bases = len(registry.bases.list())
    begun = time.perf_counter()
    adapters = registry.adapters.count()
    asked = 1000 * (time.perf_counter() - begun)
    return f"{adapters} adapters, {bases} bases in {registry.database.name}, {asked:.1f} ms per query"


def _store(registry: Registry) -> str:
    if registry.shared is None:
        return "the home alone"
    times = ", ".join(f"{what} {1000 * seconds:.1f}" for what, seconds in registry.shared.seconds().items())
    return f"{registry.shared.name}, ms: {times}"


def _bundled(registry: Registry) -> str:
    rows = registry.adapters.bundled()
    bases = [row.name for row in registry.bases.list() if row.bundled]
    if not bases:
        raise NotFound("no base is bundled; add one with `codi base add NAME FOLDER` and `codi base use NAME`")
    for row in rows:
        registry.adapters.file(row, "adapter.safetensors")
    return f"base {', '.join(bases)}; adapters {', '.join(row.ref for row in rows) or 'none'}"
