"""Progress events of long operations, typed. A caller passes an `OnEvent`; the library calls it, never prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Message:
    """One line of text for people."""

    text: str


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """An optimiser step was taken.

    Attributes:
        step: number of steps taken so far.
        total: planned number of steps, None when a time budget decides.
        losses: mean of each loss term over the step.
        images_per_s: training pairs per second of this step, over all processes.
        eta: estimated seconds of training left.
    """

    step: int
    total: int | None
    losses: Mapping[str, float]
    images_per_s: float
    eta: float


@dataclass(frozen=True, slots=True)
class ItemDone:
    """A file of a folder run has its final status.

    Attributes:
        row: the report's row: input, output, status, seed, error, seconds, and prompt if it has one.
        done: number of items with a status so far.
        total: number of items planned.
    """

    row: Mapping[str, Any]
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class EvaluationStep:
    """`done` of `total` images have been measured."""

    done: int
    total: int


Event = Message | TrainingStep | ItemDone | EvaluationStep
OnEvent = Callable[[Event], object]


def ignore(event: Event) -> None:
    """Discard an event: the default `OnEvent`."""
