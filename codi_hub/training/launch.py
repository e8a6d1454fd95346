"""What `accelerate launch` was told, in its environment: honoured where possible, refused where it had no effect."""

from __future__ import annotations

import os
from collections.abc import Mapping

from codi_hub.config.distill import TrainingConfig
from codi_hub.errors import UsageError

REFUSED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}
PRECISIONS = {"no": "fp32", "fp16": "fp16", "bf16": "bf16"}


def honoured(training: TrainingConfig, environment: Mapping[str, str] = os.environ) -> TrainingConfig:
    """Return the settings with what the launcher was told, which a setting of our own must not contradict.

    Args:
        training: the settings; those in `model_fields_set` were asked for.
        environment: where `accelerate launch` leaves its options.

    Raises:
        UsageError: an option that this training does not have, or that contradicts a setting.
    """
    for name, what in REFUSED.items():
        if environment.get(name, "").lower() in ("true", "1"):
            raise UsageError(f"accelerate launch: {what} is not supported ({name}); launch plain processes (multi_gpu)")
    if environment.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        raise UsageError("accelerate launch: no dynamo backend is supported (ACCELERATE_DYNAMO_BACKEND)")
    changes: dict[str, object] = {}
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in PRECISIONS:
        raise UsageError(f"accelerate launch: mixed precision {precision} is not supported; use fp16 or bf16")
    if precision != "no":  # "no" is what it says unasked
        changes["precision"] = _one("precision", training.precision, "auto", PRECISIONS[precision])
    if on_cpu(environment):
        changes["device"] = _one("device", training.device, "auto", "cpu")
    steps = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps.isdigit() and int(steps) > 1:
        asked = training.accumulate if "accumulate" in training.model_fields_set else int(steps)
        changes["accumulate"] = _one("accumulate", asked, int(steps), int(steps))
    return training.model_copy(update=changes)


def on_cpu(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the launcher was told to use no GPU."""
    return environment.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1")


def _one(field: str, value: object, unset: object, launched: object) -> object:
    if value not in (unset, launched):
        raise UsageError(f"training.{field} {value}: accelerate launch was told {launched}; name one of them alone")
    return launched
