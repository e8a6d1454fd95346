"""What an evaluation hands to a task, what it expects of one, and how images are generated for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from codi_hub import seeds
from codi_hub.data.folders import DataTask
from codi_hub.errors import UsageError
from codi_hub.evaluation.metrics import Column

if TYPE_CHECKING:
    from codi_hub.evaluation.measured import Measured
    from codi_hub.evaluation.tools import Inputs, Tool

# generate(conditions float32 HWC in [0, 1], prompts, image seeds, steps) -> outputs float32 HWC in [0, 1]
Generate = Callable[[list[np.ndarray], list[str], list[int], int], list[np.ndarray]]
Autoencode = Callable[[list[np.ndarray]], list[np.ndarray]]
BATCH = 8  # images per call of `generate`


class EvaluatedTask(DataTask, Protocol):
    """What an evaluation knows of a task; `codi_hub.tasks.Task` documents the members."""

    @property
    def name(self) -> str: ...
    @property
    def options(self) -> Any: ...
    @property
    def columns(self) -> Mapping[str, Column]: ...
    @property
    def training_data(self) -> str: ...
    def prepare(self, image: Any, path: Path | None = None, rng: np.random.Generator | None = None) -> Any: ...
    def finish(self, output: np.ndarray, prepared: Any) -> np.ndarray: ...
    def adherence(self, output: np.ndarray, condition: np.ndarray) -> float | None: ...
    def done(self, output: np.ndarray, pair: Any) -> float | None: ...
    def evaluate(self, context: EvaluationContext) -> Measured: ...


class Samples(NamedTuple):
    """Images of one method, uint8 HWC, and the seconds per image that generating them took, None if negligible."""

    images: Sequence[np.ndarray]
    seconds: float | None = None


@dataclass(frozen=True)
class EvaluationContext:
    """One evaluation of one adapter, as `Task.evaluate` gets it.

    Attributes:
        generate: runs the adapter.
        steps: numbers of steps to compare.
        seed: of degradations, holes and sampling.
        data: held-out data in place of the task's own, or None.
        count: number of images, or None for the task's default.
        size: side of synthetic examples, px.
        tools: other tools with a row each, for tasks with `compares_tools`.
        autoencode: encodes and decodes images, float32 HWC in [0, 1] of any size: the upper bound of the latents.
        on_progress: called with (done, total) in any unit.
    """

    generate: Generate
    steps: tuple[int, ...] = (1, 2, 4, 8)
    seed: int = 0
    data: str | None = None
    count: int | None = None
    size: int = 128
    tools: Sequence[Tool] = ()
    autoencode: Autoencode | None = None
    on_progress: Callable[[int, int], None] = lambda done, total: None

    def sample(self, task: EvaluatedTask, prepared: Sequence[Any]) -> dict[str, Samples]:
        """Return finished images of inputs of one size, without prompts, at every number of steps by `step_name`."""
        prompts = [""] * len(prepared)
        return {step_name(n): sample(task, prepared, prompts, self.generate, n, self.seed) for n in self.steps}

    def with_tools(
        self, methods: Mapping[str, Samples], inputs: Inputs, first: int, shape: tuple[int, ...]
    ) -> dict[str, Samples]:
        """Return the images of the methods, then those of the tools; see `Tool.samples`.

        Raises:
            UsageError: a tool with the name of a method. CodiError: a tool that fails.
        """
        for tool in self.tools:
            if tool.name in methods:
                raise UsageError(f"against {tool.name}: the table has a row of that name already; choose another")
        return dict(methods) | {tool.name: tool.samples(inputs, first, shape) for tool in self.tools}


def sample(
    task: EvaluatedTask,
    prepared: Sequence[Any],
    prompts: Sequence[str],
    generate: Generate,
    steps: int,
    seed: int,
    *,
    batch: int = BATCH,
) -> Samples:
    """Generate and finish images, `batch` per call; the time is that of `generate` alone.

    Args:
        task: provides `finish`.
        prepared: inputs prepared by the task, all of one size.
        prompts: one for each.
        seed: the seed of image k is derived from it and k.
    """
    image_seeds = [seeds.evaluation_image(seed, k) for k in range(len(prepared))]
    conditions = [one.condition for one in prepared]
    outputs: list[np.ndarray] = []
    start_time = time.perf_counter()
    for start in range(0, len(prepared), batch):
        part = slice(start, start + batch)
        outputs += generate(conditions[part], list(prompts[part]), image_seeds[part], steps)
    seconds = (time.perf_counter() - start_time) / len(prepared)
    return Samples([task.finish(output, one) for output, one in zip(outputs, prepared, strict=True)], seconds)


def step_name(steps: int) -> str:
    """Return the name of the row of a number of steps: "1 step", "4 steps"."""
    return f"{steps} step{'s' * (steps != 1)}"
