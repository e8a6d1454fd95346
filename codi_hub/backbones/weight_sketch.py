"""Sketches of weights: a few numbers per block of layers, by which another fine-tune is told from a 16-bit copy.

Every tensor is projected onto random signs, relative to its norm, and enters with the logarithm of its norm. A block's
numbers are sums over its tensors. Of a large tensor evenly spaced pieces are read: low-rank updates, fine-tunes and
replaced weights change all of them.
"""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Sketch = dict[str, list[float]]

PROJECTIONS, SCALES = 4, 2  # numbers per block: of directions, of norms
PIECE, PIECES = 2048, 32  # elements that lie together, and how many such pieces of a tensor are read
FLOOR = 1e-5  # deviation below which a weight does not count; float16 rounds by 3e-8 at least
MAX_BLOCKS = 500
QUANTISED = "quantised"  # key of a sketch of weights that were quantised
DECODER = ("decoder.", "post_quant_conv.")


def sketch_module(part: str, module: nn.Module) -> Sketch:
    """Sketch a module: keys are `PART/BLOCK`, and `QUANTISED` where it is."""
    marked = any(map(is_quantised, module.parameters()))
    return sketch_weights(part, dict(module.named_parameters())) | ({QUANTISED: [1.0]} if marked else {})


def sketch_outer(text_encoders: Iterable[nn.Module], autoencoder: nn.Module | None) -> Sketch:
    """Sketch what is around a network: parts `text encoder`, `autoencoder` (its encoding half) and `decoder`."""
    weights: dict[str, Tensor] = {}
    for number, encoder in enumerate(text_encoders):
        named = encoder.named_parameters()
        weights |= {f"{number}.{name.removeprefix('text_model.')}": weight for name, weight in named}
    result = sketch_weights("text encoder", weights)
    named_parameters = {} if autoencoder is None else dict(autoencoder.named_parameters())
    for part, decodes in (("autoencoder", False), ("decoder", True)):
        half = {name: w for name, w in named_parameters.items() if name.startswith(DECODER) == decodes}
        result |= sketch_weights(part, half)
    return result


def sketch_weights(part: str, weights: Mapping[str, Tensor]) -> Sketch:
    """Sketch named tensors: a count of tensors, `PROJECTIONS` and `SCALES` numbers per block."""
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(1 + PROJECTIONS + SCALES))
    for name, block in blocks([*weights]).items():
        numbers = _numbers(name, weights[name])
        if numbers is not None:
            sums[f"{part}/{block}"] += numbers
    return {block: [round(value, 4) for value in numbers.tolist()] for block, numbers in sums.items()}


def blocks(names: Sequence[str]) -> dict[str, str]:
    """Return the block of every name: up to its third number, or fewer where that makes more than `MAX_BLOCKS`."""
    found: dict[str, str] = {}
    for numbers in (3, 2, 1):
        found = {name: _block(name, numbers) for name in names}
        if len(set(found.values())) <= MAX_BLOCKS:
            break
    return found


def _block(name: str, numbers: int) -> str:
    """Return a name up to its so-manieth number; its first word where it has none."""
    words = name.split(".")
    places = [place for place, word in enumerate(words) if word.isdigit()][:numbers]
    return ".".join(words[: places[-1] + 1 if places else 1])


def _numbers(name: str, weight: Tensor) -> Tensor | None:
    """Return (1, projections / norm, +-log of the deviation) of a tensor, by signs that its name decides."""
    values = dequantised(weight)
    if values is None or values.is_meta or not values.numel():  # a base on `meta` has shapes alone
        return None
    rows = _pieces(values.detach().reshape(-1)).float().cpu()
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    along = _signs(generator, PROJECTIONS, rows.shape[1])
    across = _signs(generator, len(rows), PROJECTIONS)
    norm, unit = rows.norm(), math.sqrt(rows.numel())
    projected = ((rows @ along.T) * across).sum(0) / (norm + FLOOR * unit)
    return torch.cat([torch.ones(1), projected, _signs(generator, SCALES, 1)[:, 0] * (norm / unit + FLOOR).log()])


def _pieces(flat: Tensor) -> Tensor:
    """Return (pieces, elements) of a tensor: all of a small one, `PIECES` evenly spaced of a large one."""
    if len(flat) <= PIECE * PIECES:
        return nn.functional.pad(flat, (0, -len(flat) % PIECE)).view(-1, PIECE) if len(flat) > PIECE else flat[None]
    return flat.as_strided((PIECES, PIECE), ((len(flat) - PIECE) // (PIECES - 1), 1), flat.storage_offset())


def _signs(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator).float() * 2 - 1


def is_quantised(weight: Tensor) -> bool:
    """Whether a weight is kept as integers with scales."""
    return type(weight) not in (Tensor, nn.Parameter) or weight.is_quantized or not weight.is_floating_point()


def unpacked_shape(weight: Any) -> tuple[int, ...]:
    """Return the shape of what a weight stands for; 4 bits are kept in bytes, of GGUF together with their scales."""
    state = getattr(weight, "quant_state", None)  # of bitsandbytes
    return tuple(state.shape if state is not None else getattr(weight, "quant_shape", weight.shape))


def shapes_of(module: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """Return names and unpacked shapes of a module's tensors, without what its quantisation adds to them."""
    own = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    return [(name, unpacked_shape(own[name])) for name in module.state_dict() if name in own]


def dequantised(weight: Any) -> Tensor | None:
    """Return a weight as floating-point numbers; None for integers of which nothing tells what they stand for."""
    if not is_quantised(weight):
        return weight
    if type(weight).__name__ in ("Params4bit", "Int8Params"):
        from diffusers.quantizers.bitsandbytes.utils import dequantize_bnb_weight

        return dequantize_bnb_weight(weight)
    if type(weight).__name__ == "GGUFParameter":
        from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

        return dequantize_gguf_tensor(weight)
    own = weight.is_quantized or type(weight).dequantize is not Tensor.dequantize  # torch's, torchao's
    return weight.dequantize() if own else None


def distances(mine: Sketch, theirs: Sketch) -> dict[str, float]:
    """Return the largest distance over the blocks of every part; infinite for parts with other blocks.

    A distance is about the root mean square of the relative changes of a block's tensors.
    """
    found: dict[str, float] = {}
    for block in mine.keys() | theirs.keys():
        part, slash, _ = block.partition("/")
        if slash:
            found[part] = max(found.get(part, 0.0), _distance(mine.get(block), theirs.get(block)))
    return found


def _distance(mine: list[float] | None, theirs: list[float] | None) -> float:
    if mine is None or theirs is None or len(mine) != len(theirs) or not mine or mine[0] != theirs[0]:
        return math.inf
    difference = torch.tensor(mine[1:]) - torch.tensor(theirs[1:])
    distance = (difference.square().mean() / max(mine[0], 1.0)).sqrt().item()
    return distance if math.isfinite(distance) else math.inf
