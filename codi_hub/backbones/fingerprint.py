"""Fingerprints: what tells one base from another, so that an adapter is never run on a base it was not made for."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from codi_hub.backbones.weight_sketch import QUANTISED, Sketch, dequantised, distances, sketch_module
from codi_hub.errors import Mismatch

if TYPE_CHECKING:
    from codi_hub.registry import BaseRow

TOLERANCE = 0.02  # of `sketch`; a 16-bit copy stays below 0.004, a fine-tune of a few hundred steps exceeds it
PART_TOLERANCE = 0.006  # of `sketch_module`; a 16-bit copy stays below 0.004
QUANTISED_TOLERANCE = 0.15  # where one of the two is quantised: 8 bits differ by about 0.01, 4 bits by 0.1
DIRECTIONS = 16
NETWORK, DECODER = "network", "decoder"  # parts of a base, as messages name them


@dataclass(frozen=True)
class Fingerprint:
    """What tells a base from others: `family` hashes its architecture, `sketch` summarises its weights.

    Attributes:
        family: 16 hexadecimal digits.
        sketch: of `sketch_module`, or of `sketch` in records of the first edition, which looked at four tensors.
        first_edition: returns the sketch of the first edition, for comparisons with its records.
    """

    family: str
    sketch: Sketch
    first_edition: Callable[[], Sketch] = field(default=dict, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        family: str,
        network: nn.Module,
        outer: Sketch | None = None,
        sketched: Sequence[str] = (),
    ) -> Fingerprint:
        """Fingerprint a base.

        Args:
            family: see `family_hash`.
            network: as it was loaded, on any device.
            outer: see `Backbone.outer_sketch`.
            sketched: names of the network's tensors that the first edition looked at.
        """

        def first_edition() -> Sketch:
            weights = {name: weight for name, weight in network.named_parameters() if name in sketched}
            return sketch({name: w for name, one in weights.items() if (w := dequantised(one)) is not None}, sketched)

        return cls(family, sketch_module(NETWORK, network) | (outer or {}), first_edition)

    def check(self, family: str, sketch: Sketch | None, *, allow_fine_tune: bool = False) -> None:
        """Compare an adapter's record of its base with this base; another decoder does not matter to an adapter.

        Raises:
            Mismatch: another family, or other weights of it unless `allow_fine_tune`.
        """
        if family != self.family:
            raise Mismatch(
                f"the adapter was distilled for a base of family {family}, this base is of family {self.family}: "
                "choose the base it belongs to, or distil the task again on this one"
            )
        if allow_fine_tune:
            return
        if different := {part: why for part, why in self.differences(sketch or {}).items() if part != DECODER}:
            raise Mismatch(
                f"the adapter was distilled on other weights of the same family {family}, its {_said(different)}: use "
                "it all the same with allow_base_mismatch"
            )

    def differences(self, sketch: Sketch) -> dict[str, str]:
        """Return the parts of a base whose weights differ from a sketch's, each with its distance in words."""
        quantised = QUANTISED in self.sketch or QUANTISED in sketch
        allowed = QUANTISED_TOLERANCE if quantised else PART_TOLERANCE
        found = distances(self.sketch, sketch) if _has_parts(self.sketch) and _has_parts(sketch) else {}
        found = {part: distance for part, distance in found.items() if distance > allowed}
        words = {part: f"distance {distance:.3f}, allowed {allowed}" for part, distance in sorted(found.items())}
        if sketch and not _has_parts(sketch):
            allowed = QUANTISED_TOLERANCE if quantised else TOLERANCE
            if (distance := sketch_distance(self.first_edition() | self.sketch, sketch)) > allowed:
                words[NETWORK] = f"distance {distance:.3f}, allowed {allowed}"
        return words


def check_unchanged(row: BaseRow, fingerprint: Fingerprint) -> None:
    """Raise Mismatch if a base is no longer what was registered; its decoder counts here."""
    if fingerprint.family != row.family:
        changed = f"family {fingerprint.family}, then {row.family}"
    elif different := fingerprint.differences(row.sketch or {}):
        changed = f"its {_said(different)}"
    else:
        return
    raise Mismatch(
        f"base {row.name} is not what was registered, at {row.source} ({changed}): "
        "restore it, or register it under another name with `codi base add NAME FOLDER`"
    )


def _said(different: Mapping[str, str]) -> str:
    return ", ".join(f"{part} differs ({why})" for part, why in different.items())


def _has_parts(sketch: Sketch) -> bool:
    return any("/" in name for name in sketch)


def family_hash(shapes: Sequence[tuple[str, tuple[int, ...]]], *facts: object) -> str:
    """Hash tensor names and shapes together with what else distinguishes architectures: 16 hexadecimal digits."""
    text = json.dumps([sorted(shapes), *facts])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sketch(weights: Mapping[str, Tensor], names: Sequence[str]) -> Sketch:
    """Project tensors onto fixed random directions; names that are not there, or have no data, are left out."""
    projections = {}
    for name in names:
        if name in weights and not weights[name].is_meta:
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
