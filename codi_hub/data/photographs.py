"""Photographs to measure on, and never to train on: scikit-image's own, or any folder of images."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from codi_hub.errors import InvalidInput, NotFound, UsageError
from codi_hub.images.io import decode_image, open_image

BUNDLED = ("astronaut", "coffee", "chelsea", "rocket", "motorcycle")  # CC0 or public domain; in scikit-image's wheel
EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
MULTIPLE = 64  # sides are cut to multiples of it, px
MAX_SIDE = 512


@dataclass(frozen=True)
class Photograph:
    """A picture to measure on.

    Attributes:
        name: of the picture, for tables.
        image: uint8 (H, W, 3), sides multiples of 64.
        depth: float32 (H, W) relative inverse depth in [0, 1], near = 1, where it is known.
    """

    name: str
    image: np.ndarray
    depth: np.ndarray | None = None


def photographs(data: str | Path | None = None, count: int | None = None) -> list[Photograph]:
    """Test photographs, cut to multiples of 64 px and at most 512 px a side.

    Args:
        data: an image or a folder of images; None means scikit-image's own.
        count: how many at most.

    Raises:
        NotFound: the folder is not there.
        InvalidInput: a file is no readable image, or smaller than 64 px.
        UsageError: no image in the folder.
    """
    return _bundled(count) if data is None else _folder(Path(data), count)


def _bundled(count: int | None) -> list[Photograph]:
    from skimage import data

    made = []
    for name in BUNDLED[:count]:
        if name == "motorcycle":
            image, _, disparity = data.stereo_motorcycle()
            made.append(_fitted(name, image, disparity))
        else:
            made.append(_fitted(name, getattr(data, name)()))
    return made


def _folder(path: Path, count: int | None) -> list[Photograph]:
    if path.is_dir():
        files = [Path(root, file) for root, _, names in os.walk(path) for file in names if not file.startswith(".")]
        files = sorted(file for file in files if file.suffix.lower() in EXTENSIONS)
    elif path.exists():
        files = [path]
    else:
        raise NotFound(f"no such file or folder: {path}; name a folder of images with --data")
    if not files:
        raise UsageError(f"no images in {path}: name a folder that holds {', '.join(sorted(EXTENSIONS))} files")
    made = []
    for file in files[:count]:
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        try:
            made.append(_fitted(name, np.asarray(decode_image(open_image(file)).image)))
        except InvalidInput as exc:
            raise InvalidInput(f"{file}: {exc}") from exc
    return made


def _fitted(name: str, image: np.ndarray, disparity: np.ndarray | None = None) -> Photograph:
    """Scaled down to `MAX_SIDE`, then the middle cut to multiples of `MULTIPLE`; a disparity map goes along."""
    height, width = image.shape[:2]
    scale = min(1.0, MAX_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if min(size) < MULTIPLE:
        raise InvalidInput(f"{width}x{height} pixels are too few to measure on: at least {MULTIPLE} a side")
    box = _middle(*size)
    pixels = np.asarray(Image.fromarray(image[..., :3]).resize(size, Image.Resampling.LANCZOS).crop(box))
    if disparity is None:
        return Photograph(name, pixels)
    known = np.isfinite(disparity)  # where stereo found no match it is infinite: taken as far
    nearness = Image.fromarray(np.where(known, disparity, disparity[known].min()).astype(np.float32))
    field = np.asarray(nearness.resize(size, Image.Resampling.BOX).crop(box))
    return Photograph(name, pixels, (field - field.min()) / max(float(np.ptp(field)), 1e-6))


def _middle(width: int, height: int) -> tuple[int, int, int, int]:
    w, h = width // MULTIPLE * MULTIPLE, height // MULTIPLE * MULTIPLE
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
