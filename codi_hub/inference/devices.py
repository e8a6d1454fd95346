"""Where and in what precision to compute."""

from __future__ import annotations

from typing import Any

import torch

from codi_hub.errors import UsageError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def choose_device(name: str) -> torch.device:
    """Return the device of `auto|cpu|cuda|cuda:N|mps`.

    Raises:
        UsageError: unknown, or not on this machine.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, here in present.items() if here))
    if not present.get(name.split(":")[0], False):
        here = ", ".join(kind for kind, there in present.items() if there)
        raise UsageError(f"device {name}: not on this machine (here: {here})")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device {name}: write it as cpu, cuda, cuda:1 or mps") from error
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= count:
        raise UsageError(f"device {name}: this machine has {count} of them; the last is {device.type}:{count - 1}")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of `auto|fp32|fp16|bf16`; auto is 16 bit where the device computes faster in it, else float32.

    Raises:
        UsageError: an unknown name.
    """
    if name == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        return torch.bfloat16 if device.type == "cpu" and computes_bfloat16() else torch.float32
    if name not in DTYPES:
        raise UsageError(f"dtype {name}: one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def computes_bfloat16() -> bool:
    """Whether the CPU is faster in bfloat16: by AMX, or by AVX-512 BF16 except Intel's.

    Intel's takes 1.7 times as long for it as for float32 (a training step of nano), and virtual machines may hide AMX.
    """
    can: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older PyTorch does not say
    return bool(can.get("amx_tile") or (can.get("avx512_bf16") and "Intel" not in can["cpu_name"]))
