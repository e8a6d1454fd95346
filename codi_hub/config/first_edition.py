"""Names and run folders of the first edition, whose options were one flat list of flags.

`run.json` in a run folder held them by name; tasks, too, name what they prefer by the flags' names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codi_hub.config.distill import DistillConfig, RunState
from codi_hub.config.layers import nested
from codi_hub.config.model import declared
from codi_hub.errors import InvalidInput, UsageError, one_line

RUN_FILE = "run.json"

_ADAPTER = ("allow_base_mismatch", "rank", "fusion", "gain", "init", "start_noise", "blocks", "levels", "read")
_LOSS = ("grid", "dt", "ode", "guidance_cap", "lpips", "consistency", "consistency_cap", "shared_t", "rollout")
RENAMED = {  # old name -> where it is now, for what has no flag of the same name any more
    **{name: f"adapter.{name}" for name in _ADAPTER},
    **{name: f"loss.{name}" for name in _LOSS},
    "consistency_weight": "loss.consistency",
    "pairs": "data.cache_dir",
    "ema": "training.ema",
    "options": "task",
    "task_options": "task",
}
REMOVED = {  # old name -> its default, and what it did
    "mirror": (False, "training on mirror images"),
    "attend": ("base", "cross-attention at every level of the encoder"),
    "top_down": (False, "the top-down path beside the encoder"),
    "optimizer": ("adamw", "the choice of the optimiser, which is AdamW now"),
}
_DEFAULTS: dict[str, Any] = {  # what a run.json says of switches that its kind and method may not have had
    "rank": None,
    "blocks": None,
    "levels": None,
    "read": False,
    "fusion": "zero_conv",
    "gain": True,
    "init": "pretrained",
    "start": 1.0,
    "start_noise": None,
    "grid": 8,
    "dt": 1,
    "ode": "own",
    "guidance": "latent",
    "guidance_cap": 5.0,
    "lpips": None,
    "consistency": 1.0,
    "consistency_cap": True,
    "shared_t": True,
}
_BASELINES = ("conditional", "cm", "gd")  # for which it said `rollout` all the same


def layer_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration layer of flat option names, such as `{"count": 2500, "lr": 6e-4}`.

    Raises:
        UsageError: an unknown option.
    """
    paths = {one.flag.removeprefix("--").replace("-", "_"): one.path for one in declared(DistillConfig) if one.flag}
    paths |= RENAMED
    for name in options:
        if name not in paths:
            raise UsageError(f"{one_line(name, 40)}: no option of a distillation")
    return nested({paths[name]: value for name, value in options.items()})


def read_run(folder: Path) -> dict[str, Any]:
    """Return the configuration layer, with its `run`, that a run folder of the first edition was started with.

    Raises:
        InvalidInput: its `run.json` cannot be read.
        UsageError: it was started with an option that was removed.
    """
    path = folder / RUN_FILE
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if missing := [name for name in ("task", "like", "pairs_per_step") if name not in dict(kept)]:
            raise ValueError(f"no {', '.join(missing)}")
        state = RunState(
            task=kept.pop("task"),
            like=kept.pop("like"),
            pairs_per_step=kept.pop("pairs_per_step"),
            teacher=kept.pop("from", None),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as error:
        raise InvalidInput(f"{path}: not the record of a run: {one_line(error, 160)}") from error
    for name, (default, what) in REMOVED.items():
        if kept.pop(name, default) != default:
            raise UsageError(f"{path}: the run uses {what} ({name}), which was removed: start a new run")
    if kept.get("method") in _BASELINES:
        kept.pop("rollout", None)
    kept.pop("options", None)  # part of task_options
    weight = kept.pop("consistency_weight", 1.0)
    kept["consistency"] = weight if kept.get("consistency", True) else 0.0
    said = {name: value for name, value in kept.items() if name not in _DEFAULTS or value != _DEFAULTS[name]}
    layer = layer_of(said)
    layer.setdefault("training", {})["batch"] = state.pairs_per_step  # how they were shared out is not recorded
    return layer | {"run": state}
