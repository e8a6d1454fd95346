"""What every operation works with: the catalog, the loaded networks, and the base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from codi_hub.errors import UsageError
from codi_hub.record import DISTILLED_METHODS

if TYPE_CHECKING:
    from codi_hub.catalog import Catalog
    from codi_hub.inference.models import ModelCache
    from codi_hub.registry import AdapterRow

MAX_STEPS = 1000  # entries of the noise schedule


@dataclass(frozen=True)
class Context:
    """The parts of a Hub that operations share.

    Attributes:
        base: name of the base; None: the one in use.
    """

    catalog: Catalog
    models: ModelCache
    base: str | None = None

    def resolve(self, ref: str, base: str | None = None) -> AdapterRow:
        """Return the adapter of a reference such as "depth", "depth:2" or "depth:prod". Raises NotFound."""
        return self.catalog.registry.adapters.resolve(ref, base=base or self.base)


def check_steps(steps: int, row: AdapterRow) -> None:
    """Raise UsageError for a number of sampling steps that no schedule has."""
    if type(steps) is not int or not 1 <= steps <= MAX_STEPS:
        raise UsageError(f"steps {steps!r:.40}: a number from 1 to {MAX_STEPS} ({row.ref} is trained for {row.steps})")


def check_guidance(scale: float, negative_prompt: str | None, row: AdapterRow) -> None:
    """Refuse a guidance scale for an adapter that was trained without one, and a negative prompt without guidance.

    Raises:
        UsageError: either, or a scale below 1.
    """
    if scale < 1:
        raise UsageError(f"guidance_scale {scale:g}: at least 1, which is no guidance")
    if scale == 1 and negative_prompt:
        raise UsageError("negative_prompt: it needs guidance: set guidance_scale above 1, or leave it out")
    if scale > 1 and row.method in DISTILLED_METHODS:
        raise UsageError(
            f"guidance_scale {scale:g}: {row.ref} was trained with method {row.method}, without guidance: leave it at "
            "1, or use an adapter trained with method conditional"
        )
