"""Which pairs and random numbers a training step uses: everything depends on (seed, step) and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor

from codi_hub import seeds


@dataclass
class PairStream:
    """The endless sequence of training pairs: a new permutation in every epoch, shared out over processes.

    One process with twice the batch sees the pairs that two see.

    Attributes:
        pairs: number of pairs.
        batch: pairs per micro-batch and process.
        accumulate: micro-batches per optimiser step.
        seed: of the run.
        processes, process: how many take part, and which this is.
    """

    pairs: int
    batch: int
    accumulate: int
    seed: int
    processes: int = 1
    process: int = 0
    _order: tuple[int, Tensor] | None = field(default=None, repr=False)

    def rows(self, step: int, micro: int) -> tuple[Tensor, int]:
        """Return (indices of pairs, position of the first in the stream) of a micro-batch of this process."""
        start = ((step * self.accumulate + micro) * self.processes + self.process) * self.batch
        return torch.tensor([self._at(start + k) for k in range(self.batch)]), start

    def rows_between(self, step: int, last: int) -> Iterator[int]:
        """Yield the pairs that this process sees in the steps from `step` to before `last`, in order."""
        for k, micro in product(range(step, last), range(self.accumulate)):
            yield from self.rows(k, micro)[0].tolist()

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which all processes together see every pair."""
        return -(-self.pairs // (self.batch * self.accumulate * self.processes))

    def _at(self, position: int) -> int:
        epoch, place = divmod(position, self.pairs)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, torch.randperm(self.pairs, generator=seeds.training_order(self.seed, epoch))
        return int(self._order[1][place])

    def noise(self, start: int, shape: tuple[int, ...]) -> Tensor:
        """Return eps of a micro-batch whose first pair is at `start`, float32 (batch, *shape)."""
        generators = [seeds.training_noise(self.seed, start + k) for k in range(self.batch)]
        return torch.stack([torch.randn(shape, generator=generator) for generator in generators])

    def renoising(self, start: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return (u, eps) of a micro-batch whose first pair is at `start`: uniform (batch,), Gaussian as `noise`."""
        generators = [seeds.renoising(self.seed, start + k) for k in range(self.batch)]
        u = torch.stack([torch.rand((), generator=generator) for generator in generators])
        return u, torch.stack([torch.randn(shape, generator=generator) for generator in generators])

    def dropped(self, start: int, share: float) -> Tensor:
        """Return which pairs of a micro-batch are trained without their prompts, bool (batch,): `share` of all."""
        draws = [seeds.prompt_dropout(self.seed, start + k).random() for k in range(self.batch)]
        return torch.tensor(draws) < share

    def integers(self, step: int, start: int, low: int, high: int, shared: bool) -> Tensor:
        """Return integers of [low, high), int64 (batch,).

        Shared: one, the same in all processes and micro-batches of a step. Else each depends on its pair's position.
        """
        if shared:
            return torch.randint(low, high, (1,), generator=seeds.shared_time(self.seed, step)).expand(self.batch)
        positions = range(start, start + self.batch)
        return torch.tensor([int(seeds.training_time(self.seed, place).integers(low, high)) for place in positions])
