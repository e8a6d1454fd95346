"""Options of `codi eval` and `Hub.evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from codi_hub.config.model import Options, option
from codi_hub.config.values import Device, Precision


def _steps(value: Any) -> tuple[int, ...]:
    parts = value.split(",") if isinstance(value, str) else [value] if isinstance(value, int) else value
    try:
        steps = tuple(dict.fromkeys(int(part) for part in parts))
    except (TypeError, ValueError):
        steps = ()
    if not steps or min(steps) < 1:
        raise ValueError("numbers from 1 up, as 1,2,4,8")
    return steps


def _names(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(str(part).strip() for part in parts)


class EvalOptions(Options):
    """How an adapter is measured."""

    steps: Annotated[tuple[int, ...], BeforeValidator(_steps)] = option((1, 2, 4, 8), "--steps", metavar="N,N")
    """Numbers of sampling steps to compare, as 1,2,4,8."""
    against: Annotated[tuple[str, ...], BeforeValidator(_names)] = option((), "--against", metavar="NAME,NAME")
    """What else stands in the table: base (the base without its adapter), other adapters of the task as depth:2, both
    at the same steps or at their own as depth:2@50, and the task's baselines such as bicubic for superres (default:
    baselines that cost nothing)."""
    features: Path | None = option(None, "--features")
    """Feature network of the Frechet and perceptual distances: a folder such as the bundled one, or a TorchScript file
    that maps images (B,3,H,W) in [0,1] to (feature maps, vectors) (default: the bundled one, if there is one)."""
    data: str | None = option(None, "--data")
    """Held-out images, as in `codi distill --data` (default: test photographs)."""
    count: int | None = option(None, "--count", ge=1)
    """Number of images (default: all)."""
    out: Path | None = option(None, "-o", "--out")
    """Folder for the report and the images."""
    base: str | None = option(None, "--base")
    """Base to run on (default: the one in use)."""
    sampler: str = option("ddim", "--sampler")
    """ddim (along the ODE), renoise (fresh noise between steps) or dpmpp (DPM-Solver++(2M), for many steps)."""
    temperature: float = option(1.0, "--temperature", ge=0.0, le=2.0)
    """Scale of the initial noise."""
    seed: int = option(0, "--seed", ge=0)
    """Seed of the noise and the degradations."""
    device: Device = option("auto", "--device", panel="Machine")
    """Device to compute on."""
    dtype: Precision = option("auto", "--dtype", panel="Machine")
    """Precision of the networks."""
    set: dict[str, Any] = option({}, "--set", metavar="KEY=VALUE")
    """Task option as KEY=VALUE; repeat for more."""
