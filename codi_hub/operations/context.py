"""What every operation works with: the catalog, the loaded networks, and the base."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from codi_hub.errors import Mismatch, NotFound, UsageError
from codi_hub.events import Message, OnEvent, ignore
from codi_hub.record import DISTILLED_METHODS, RECORD, read_record

if TYPE_CHECKING:
    from codi_hub.catalog import Catalog
    from codi_hub.inference.models import ModelCache
    from codi_hub.registry import AdapterRow, BaseRow
    from codi_hub.tasks import Task

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

    def resolve(
        self, ref: str, base: str | None = None, *, allow_base_mismatch: bool = False, on_event: OnEvent = ignore
    ) -> AdapterRow:
        """Return the adapter of a reference such as "depth", "depth:2" or "depth:prod".

        Args:
            ref: the reference.
            base: name of the base; None: the Hub's, or the one in use.
            allow_base_mismatch: take the adapter of another base of the same architecture where this one has none.
                One of a base with the same weights, such as a quantised copy, is taken in any case.
            on_event: told of that.

        Raises:
            NotFound: no such adapter. Mismatch: another base has one, with other weights; the message names it.
        """
        registry = self.catalog.registry
        try:
            return registry.adapters.resolve(ref, base=base or self.base)
        except NotFound as error:
            wanted = registry.bases.get(base or self.base)
            row = self._of_another_base(ref, wanted)
            if row is None:
                raise
            if not (allow_base_mismatch or _same_weights(registry.bases.get(row.base), wanted)):
                raise Mismatch(
                    f"base {wanted.name} has no adapter {ref}; base {row.base}, of the same architecture, has "
                    f"{row.ref}: use it all the same with allow_base_mismatch"
                ) from error
        on_event(Message(f"{row.ref} was trained on base {row.base}; it is used on {wanted.name}"))
        return replace(row, base=wanted.name)

    def _of_another_base(self, ref: str, wanted: BaseRow) -> AdapterRow | None:
        registry = self.catalog.registry
        for other in registry.bases.list():
            if other.family == wanted.family and other.name != wanted.name:
                with suppress(NotFound):
                    return registry.adapters.resolve(ref, base=other.name)
        return None


def _same_weights(one: BaseRow, other: BaseRow) -> bool:
    from codi_hub.backbones.fingerprint import DECODER, Fingerprint

    return not {*Fingerprint(one.family, one.sketch or {}).differences(other.sketch or {})} - {DECODER}


def check_steps(steps: int, row: AdapterRow) -> None:
    """Raise UsageError for a number of sampling steps that no schedule has."""
    if type(steps) is not int or not 1 <= steps <= MAX_STEPS:
        raise UsageError(f"steps {steps!r:.40}: a number from 1 to {MAX_STEPS} ({row.ref} is trained for {row.steps})")


def check_size(size: tuple[int, int] | None, task: Task) -> None:
    """Raise UsageError for a size of outputs that the input decides."""
    if size is not None and not task.size_is_free:
        raise UsageError(f"size {size[0]}x{size[1]}: the size of {task.name}'s outputs is its input's: leave it out")


def check_variants(count: int, sampler: str, temperature: float, row: AdapterRow) -> None:
    """Raise UsageError for several images of an input where no noise makes them differ."""
    if count < 1:
        raise UsageError(f"variants {count}: at least 1")
    noiseless = row.method == "regression" and sampler != "renoise"
    if count > 1 and (noiseless or temperature == 0):
        why = f"{row.ref} is a regression, which takes no noise" if noiseless else "temperature 0 is without noise"
        raise UsageError(f"variants {count}: {why}, so that all would be alike: set it to 1")


def check_strength(strength: float, row: AdapterRow) -> None:
    """Raise UsageError for a strength outside [0, 1], or another than 1 for an adapter of a kind that has none."""
    if not 0 <= strength <= 1:
        raise UsageError(f"strength {strength}: a number from 0 to 1")
    if strength == 1:
        return
    from codi_hub.adapters import KINDS

    if row.kind in KINDS and not KINDS.load(row.kind).scalable:
        raise UsageError(f"strength {strength:g}: {row.ref} is of kind {row.kind}, which has none: leave it at 1")


def check_together(context: Context, rows: Sequence[AdapterRow]) -> None:
    """Raise UsageError for adapters that cannot share an image: they bring a network, or begin from their condition."""
    from codi_hub.adapters import KINDS
    from codi_hub.inference.requests import ALONE, STARTS

    for row in rows:
        if row.kind in KINDS and not KINDS.load(row.kind).adds_residuals:
            raise UsageError(f"{row.ref} is of kind {row.kind}, which {ALONE}")
        record = read_record(context.catalog.registry.adapters.file(row, RECORD))
        if (start := record.config.get("start", 1)) != 1:
            raise UsageError(f"{row.ref} has start {start:g}: it {STARTS}")


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
