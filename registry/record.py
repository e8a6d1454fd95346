"""The method that an adapter's record names, for the list of adapters.

`codi_hub.adapters.record`, a layer above, reads and checks the whole record.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MAX_BYTES = 16 << 20
MAX_METHOD = 60  # characters
_CODI = ("pe-codi", "codi")
_START_NOISE = 0.5  # of a version 1 record whose `start` is below 1 and that does not name its noise


def recorded_method(path: Path) -> str | None:
    """Return the method that an `adapter.json` of format version 1 or 2 names.

    None where it names none or cannot be read: an adapter is registered all the same.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
        method = record["method"] if record.get("format_version", 1) > 1 else _version_1(record)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    fits = isinstance(method, str) and 0 < len(method) <= MAX_METHOD and method.isprintable()
    return method if fits else None


def _version_1(record: dict[str, Any]) -> str:
    """Return what was trained: version 1 named the method that was asked for, and in `loss` what was switched off."""
    training, config = record["training"], record["config"]
    method = str(training["method"]).partition(",")[0]
    if method not in _CODI:
        return method
    loss = json.loads(training["loss"])
    if loss["consistency"] and loss["weight"]:
        return method
    noise = config.get("start_noise", _START_NOISE) if config.get("start", 1) < 1 else 1
    return "guidance-only" if noise > 0 else "regression"
