"""Seeds of every random stream, by name.

A stream depends on the run's seed and on the position it is used for (an image's name, a pair's index, a training
step), never on how much was drawn before: the same image, pair or step is the same in any batch, order or process.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

HELD_OUT = 0x7E57  # seed of held-out examples; training uses small seeds and positions
_STRIDE = 1_000_003  # prime: distance between the torch seeds of neighbouring run seeds
_SHARED_TIME, _ROLLOUT = 2**41, 2**42  # offsets beyond any position of the noise stream
_STEP_STRIDE = 7919  # prime: distance between the noise seeds of neighbouring sampling steps


def image_seed(seed: int, name: str) -> int:
    """Return the seed of one image in [0, 2^63), from the run's seed and the image's relative name alone."""
    digest = hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def variant_seed(image_seed: int, variant: int) -> int:
    """Return the seed in [0, 2^63) of a further image of the same input; of variant 0, the image's own."""
    if variant == 0:
        return image_seed
    digest = hashlib.sha256(f"{image_seed}/variant {variant}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def sampling_noise(image_seed: int, step: int) -> int:
    """Return the seed of an image's noise: `step` 0 is the initial noise, k + 1 the fresh noise after step k."""
    return (image_seed + _STEP_STRIDE * step) % 2**63


def evaluation_image(seed: int, index: int) -> int:
    """Return the image seed of held-out image `index`."""
    return seed * _STRIDE + index


def example(seed: int, index: int) -> np.random.Generator:
    """Return the generator of example `index` of a data source: its content, or its crop."""
    return np.random.default_rng([seed, index])


def subset(seed: int) -> np.random.Generator:
    """Return the generator that chooses some rows of a larger table of examples."""
    return np.random.default_rng(seed)


def photograph(seed: int, *names: str) -> np.random.Generator:
    """Return the generator of what an evaluation does to a photograph (its noise, its hole), by the names of both."""
    return np.random.default_rng([seed, *"".join(names).encode()])


def constant(number: int) -> np.random.Generator:
    """Return the generator of a random table that is the same in every run, such as a field of stored noise."""
    return np.random.default_rng(number)


def pair(seed: int, index: int) -> np.random.Generator:
    """Return the generator with which a task turns example `index` into a training pair."""
    return np.random.default_rng([seed, 1, index])


def training_time(seed: int, position: int) -> np.random.Generator:
    """Return the generator of a per-sample training time, by the sample's position in the training stream.

    numpy's, because torch reads 32 bits of a seed only, so that times would depend on `training_noise`.
    """
    return np.random.default_rng([seed, 2, position])


def prompt_dropout(seed: int, position: int) -> np.random.Generator:
    """Return the generator that decides whether a pair is trained without its prompt, by its place in the stream."""
    return np.random.default_rng([seed, 3, position])


def training_noise(seed: int, position: int) -> torch.Generator:
    """Return the generator of eps for the sample at `position` of the training stream."""
    return _torch(seed * _STRIDE + position)


def renoising(seed: int, position: int) -> torch.Generator:
    """Return the generator with which a loss noises the prediction for the sample at `position` again."""
    return _torch(int(np.random.default_rng([seed, 4, position]).integers(2**32)))


def training_order(seed: int, epoch: int) -> torch.Generator:
    """Return the generator of an epoch's permutation of the training pairs."""
    return _torch(seed * _STRIDE + epoch)


def shared_time(seed: int, step: int) -> torch.Generator:
    """Return the generator of the one time that a whole optimiser step shares."""
    return _torch(seed * _STRIDE + _SHARED_TIME + step)


def rollout_path(seed: int, step: int) -> torch.Generator:
    """Return the generator that decides whether and along which times a training step simulates the sampler."""
    return _torch(seed * _STRIDE + _ROLLOUT + step)


def torch_seed(seed: int) -> int:
    """Return a seed as torch takes it; one of 2^63 or more is hashed, since torch reads its low 32 bits alone."""
    return seed if seed < 2**63 else int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:8], "big") >> 1


def _torch(seed: int) -> torch.Generator:
    import torch

    return torch.Generator().manual_seed(torch_seed(seed))
