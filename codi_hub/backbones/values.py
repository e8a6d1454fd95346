"""The values that pass through a base model: the shape of its latents, embedded prompts, and residuals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from codi_hub.errors import UsageError

Index = Tensor | slice | Sequence[int]


@dataclass(frozen=True)
class LatentSpec:
    """Shape of a base's latents.

    Attributes:
        channels: channels of a latent as losses and samplers see it.
        factor: pixels per latent cell along a side.
        multiple: sides of images must be multiples of this many pixels.
        native_size: side in pixels of the images the base was trained on.
        max_side: longest side in pixels that the network has positions for, None where there is no limit.
    """

    channels: int
    factor: int
    multiple: int
    native_size: int
    max_side: int | None = None

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return the latent (h, w) of an image in pixels, its sides rounded up to `multiple`."""
        m, f = self.multiple, self.factor
        return -(-height // m) * m // f, -(-width // m) * m // f

    def check(self, height: int, width: int) -> None:
        """Raise UsageError for an image in pixels that is larger than the network has positions for."""
        if self.max_side is not None and max(height, width) > self.max_side:
            raise UsageError(
                f"an image of {width}x{height} px: this base takes sides of at most {self.max_side} px: make the image "
                f"smaller, or set tile to {self.max_side} or less"
            )


class NamedTensors:
    """Tensors by name, all with the batch first: they are indexed, concatenated and moved together."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors; of rows of a larger batch, their own."""
        return sum(value.nbytes for value in self.tensors.values())

    def rows(self, index: Index) -> Self:
        """Return the rows of an index tensor, slice or list."""
        return type(self)({name: value[index] for name, value in self.tensors.items()})

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or cast every tensor, as `Tensor.to`."""
        return type(self)({name: value.to(*args, **kwargs) for name, value in self.tensors.items()})

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Concatenate batches with the same names."""
        return cls({name: torch.cat([part[name] for part in parts]) for name in parts[0].tensors})


class Prompt(NamedTensors):
    """Embedded prompts: `context` (B, tokens, width), and what else a family needs (pooled, mask, ids)."""

    def replaced(self, rows: Tensor, other: Prompt) -> Prompt:
        """Return the prompts with `other`, one row, in place of the rows where bool (B,) is true."""
        where = {name: rows.to(v.device).view((-1,) + (1,) * (v.ndim - 1)) for name, v in self.tensors.items()}
        return Prompt({name: torch.where(where[name], other[name], v) for name, v in self.tensors.items()})


class Residuals(NamedTensors):
    """What adapters add inside the network and to its prediction, per sample, under the family's own names."""

    def scaled(self, strength: Tensor) -> Residuals:
        """Return strength * residual, the strength (B,)."""
        return Residuals({k: strength.to(v).view((-1,) + (1,) * (v.ndim - 1)) * v for k, v in self.tensors.items()})

    def scatter(self, index: Tensor, into: Residuals | None, batch: int) -> Residuals:
        """Add these rows at `index` of a batch's residuals; `into` is changed in place, or made of zeros."""
        whole = {} if into is None else into.tensors
        for name, value in self.tensors.items():
            if name not in whole:
                whole[name] = value.new_zeros((batch, *value.shape[1:]))
            whole[name].index_add_(0, index.to(value.device), value)  # an image may have several conditions
        return Residuals(whole) if into is None else into
