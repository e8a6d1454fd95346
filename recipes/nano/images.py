"""Pools of training images, rendered once and read as memory-mapped arrays, so that training never waits for them."""

import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from codi_hub.data.synthetic.leaves import leaves
from codi_hub.data.synthetic.scenes import scene

CHUNK = 64


def _chunk(kind: str, size: int, seed: int, first: int) -> tuple[np.ndarray, list[str]]:
    images, captions = [], []
    for k in range(first, first + CHUNK):
        rng = np.random.default_rng([seed, k])
        if kind == "leaves":
            images.append(leaves(rng, size))
            captions.append("")
        else:
            rendered = scene(rng, size)
            images.append(rendered.image)
            captions.append(rendered.caption)
    return np.stack(images), captions


def pool(
    folder: Path, kind: str, count: int, *, size: int = 128, seed: int = 1, workers: int = 2
) -> tuple[np.ndarray, list[str]]:
    """Return `count` images of a kind (`leaves` or `scenes`) and their captions, rendered if they are missing.

    Returns:
        uint8 (count, size, size, 3) memory-mapped, and a list of captions (empty strings for leaves).
    """
    if count % CHUNK:
        raise ValueError(f"a pool of {count} images: a multiple of {CHUNK}")
    target = folder / f"{kind}-{size}-{count}-{seed}.npy"
    words = target.with_suffix(".json")
    if not words.exists():  # the captions are written last: where they exist, the images are complete
        folder.mkdir(parents=True, exist_ok=True)
        array = np.lib.format.open_memmap(target, "w+", np.uint8, (count, size, size, 3))
        captions: list[str] = []
        with ProcessPoolExecutor(workers) as executor:
            starts = range(0, count, CHUNK)
            for start, (images, texts) in zip(
                starts, executor.map(partial(_chunk, kind, size, seed), starts), strict=True
            ):
                array[start : start + CHUNK] = images
                captions += texts
        array.flush()
        words.write_text(json.dumps(captions))
    return np.load(target, mmap_mode="r"), json.loads(words.read_text())
