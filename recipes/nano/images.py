"""Pools of training images, rendered once and read as memory-mapped arrays, so that training never waits for them."""

import csv
import io
import json
import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from codi_hub.data.synthetic.leaves import leaves
from codi_hub.data.synthetic.scenes import scene

CHUNK = 64
MANIFEST = "manifest.tsv"  # of a folder of photographs: tab-separated, with the columns file, author and licence
EVERY = 10  # one photograph in so many is held out: no crop of it is trained on
NATURAL = 2.0  # pixels of a photograph per pixel of a crop, up to which JPEG's blocks and the camera's noise show


@dataclass(frozen=True)
class Images:
    """What a base is trained on.

    Attributes:
        scenes, leaves, photographs: uint8 (N, H, W, 3); there may be no photographs.
        captions: of the scenes. Leaves and photographs have none: a crop seldom shows what a caption names.
    """

    scenes: np.ndarray
    captions: list[str]
    leaves: np.ndarray
    photographs: np.ndarray = field(default_factory=lambda: np.zeros((0, 128, 128, 3), np.uint8))


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


def photo_files(folder: Path, *, held_out: bool = False) -> list[Path]:
    """Return the photographs that the manifest of a folder names: those to train on, or those held out.

    Raises:
        SystemExit: no manifest; without authors and licences nothing is trained on.
    """
    manifest = folder / MANIFEST
    if not manifest.exists():
        raise SystemExit(f"error: {manifest}: no such file; it names file, author and licence of every photograph")
    with manifest.open(newline="") as lines:
        files = sorted(folder / row["file"] for row in csv.DictReader(lines, delimiter="\t"))
    return [file for number, file in enumerate(files) if (number % EVERY == EVERY - 1) == held_out]


def photo_pool(
    target: Path, photos: Path, count: int, *, size: int = 128, seed: int = 3, held_out: bool = False
) -> np.ndarray:
    """Return random crops of the photographs in a folder, at random scales, cut where `target` is missing.

    Large photographs are cut more often, in proportion to their side: they hold more, and repeat less.

    Returns:
        uint8 (count, size, size, 3) memory-mapped.
    """
    file = target / f"photographs-{size}-{count}-{seed}{'-held' if held_out else ''}.npy"
    if not file.exists():
        target.mkdir(parents=True, exist_ok=True)
        files, rng = photo_files(photos, held_out=held_out), np.random.default_rng([seed, held_out])
        sides = np.array([np.prod(Image.open(one).size) ** 0.5 for one in files])
        of = rng.choice(len(files), count, p=sides / sides.sum())
        array = np.lib.format.open_memmap(file.with_suffix(".part"), "w+", np.uint8, (count, size, size, 3))
        for number, one in enumerate(files):
            image = Image.open(one).convert("RGB")
            for row in np.flatnonzero(of == number):
                array[row] = crop(image, rng, size)
        array.flush()
        file.with_suffix(".part").rename(file)
    return np.load(file, mmap_mode="r")


def crop(image: Image.Image, rng: np.random.Generator, size: int) -> np.ndarray:
    """Return a random square of an image, mirrored or not, scaled to (size, size, 3).

    The logarithm of its side is uniform, from `NATURAL` times the size, where the image allows it, to the whole height.
    """
    largest = min(image.size)
    smallest = min(NATURAL * size, max(size, 0.7 * largest), largest)
    side = round(float(np.exp(rng.uniform(np.log(smallest), np.log(largest)))))
    left, top = (int(rng.integers(0, extent - side + 1)) for extent in image.size)
    box = (left, top, left + side, top + side)
    pixels = np.asarray(image.resize((size, size), Image.Resampling.LANCZOS, box=box))
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def shard(target: Path, pools: Sequence[np.ndarray]) -> Path:
    """Write the images of several pools, uint8 (N, H, W, 3), to a tar file that `codi distill --data` reads in place.

    A file that is there already is kept. Returns `target`.
    """
    if not target.exists():
        part = target.with_suffix(".part")
        with tarfile.open(part, "w") as archive:
            for number, image in enumerate(image for pool in pools for image in pool):
                content = io.BytesIO()
                Image.fromarray(image).save(content, "PNG", compress_level=1)
                member = tarfile.TarInfo(f"{number:06}.png")
                member.size = content.tell()
                content.seek(0)
                archive.addfile(member, content)
        os.replace(part, target)
    return target
