"""Fingerprints: what tells one base from another, so that an adapter is never run on a base it was not made for."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codi_hub.errors import Mismatch

TOLERANCE = 0.02  # of the sketch; a 16-bit copy stays below 0.004, a fine-tune of a few hundred steps exceeds it
DIRECTIONS = 16

Sketch = dict[str, list[float]]


@dataclass(frozen=True)
class Fingerprint:
    """Two-part fingerprint: `family` hashes a base's architecture, `sketch` summarises its weights coarsely."""

    family: str
    sketch: Sketch

    def check(self, family: str, sketch: Sketch | None, *, allow_fine_tune: bool = False) -> None:
        """Compare an adapter's record of its base with this base.

        Raises:
            Mismatch: another family, or another fine-tune of it unless `allow_fine_tune`.
        """
        if family != self.family:
            raise Mismatch(
                f"the adapter was distilled for a base of family {family}, this base is of family {self.family}: "
                "choose the base it belongs to, or distil the task again on this one"
            )
        if sketch and not allow_fine_tune and (distance := sketch_distance(self.sketch, sketch)) > TOLERANCE:
            raise Mismatch(
                f"the adapter was distilled on other weights of the same family {family} (distance {distance:.3f}, "
                f"allowed {TOLERANCE}): use it all the same with allow_base_mismatch"
            )


def family_hash(shapes: Sequence[tuple[str, tuple[int, ...]]], *facts: object) -> str:
    """Hash tensor names and shapes together with what else distinguishes architectures: 16 hexadecimal digits."""
    text = json.dumps([sorted(shapes), *facts])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sketch(weights: Mapping[str, Tensor], names: Sequence[str]) -> Sketch:
    """Project tensors onto fixed random directions; names that are not there are left out."""
    projections = {}
    for name in names:
        if name in weights:
            flat = weights[name].detach().float().cpu().flatten()
            directions = torch.randn(DIRECTIONS, len(flat), generator=torch.Generator().manual_seed(len(flat)))
            projections[name] = [round(value, 5) for value in (directions @ flat / flat.numel() ** 0.5).tolist()]
    return projections


def sketch_distance(mine: Sketch, theirs: Sketch) -> float:
    """Return the largest relative distance over the tensors that both sketches have; infinite if not comparable."""
    distances = [0.0]
    for name in mine.keys() & theirs.keys():
        a, b = torch.tensor(mine[name]), torch.tensor(theirs[name])
        if a.shape != b.shape or not b.isfinite().all():
            return math.inf
        distances.append(((a - b).norm() / a.norm().clamp(min=1e-12)).item())
    return max(distances)
