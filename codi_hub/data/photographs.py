"""Test photographs, never used for training: those of scikit-image, or any folder of images."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from codi_hub.errors import InvalidInput, NotFound, UsageError, prefixed
from codi_hub.images.formats import EXTENSIONS
from codi_hub.images.io import decode_image, open_image

BUNDLED = ("astronaut", "coffee", "chelsea", "rocket", "motorcycle")  # CC0 or public domain; in scikit-image's wheel
MULTIPLE = 64  # px; sides are cropped to multiples of it
MAX_SIDE = 512  # px
PAIRED = ("test_LR", "test_HR")  # folders of the layout in which StableSR (Wang et al., 2024) gives its test sets


@dataclass(frozen=True)
class Photograph:
    """A test image.

    Attributes:
        name: for tables and random streams.
        image: uint8 (H, W, 3), sides multiples of 64.
        depth: float32 (H, W) relative inverse depth in [0, 1], near = 1, if known.
        small: uint8 (h, w, 3), the degraded version that its data set comes with, if any.
    """

    name: str
    image: np.ndarray
    depth: np.ndarray | None = None
    small: np.ndarray | None = None


def photographs(data: str | Path | None = None, count: int | None = None) -> list[Photograph]:
    """Return test photographs with sides of multiples of 64 px, at most 512 px.

    Args:
        data: an image or a folder of images; None means those of scikit-image. A folder with `test_LR` and `test_HR`
            gives pairs at their own sizes.
        count: maximum number of images.

    Raises:
        NotFound: no such folder.
        InvalidInput: a file is not a readable image, or smaller than 64 px.
        UsageError: no image in the folder.
    """
    if data is not None and all((Path(data) / name).is_dir() for name in PAIRED):
        return _paired(Path(data), count)
    return _bundled(count) if data is None else _folder(Path(data), count)


def _bundled(count: int | None) -> list[Photograph]:
    from skimage import data

    photos = []
    for name in BUNDLED[:count]:
        if name == "motorcycle":
            image, _, disparity = data.stereo_motorcycle()
            photos.append(_fitted(name, image, disparity))
        else:
            photos.append(_fitted(name, getattr(data, name)()))
    return photos


def _images(folder: Path) -> list[Path]:
    files = [Path(root, file) for root, _, names in os.walk(folder) for file in names if not file.startswith(".")]
    return sorted(file for file in files if file.suffix.lower() in EXTENSIONS)


def _paired(folder: Path, count: int | None) -> list[Photograph]:
    """Return pairs of equal names in `PAIRED`, at their own sizes."""
    small, large = ({file.stem: file for file in _images(folder / name)} for name in PAIRED)
    if odd := sorted(small.keys() ^ large.keys()):
        raise InvalidInput(f"data {folder}: {odd[0]} is in one of {' and '.join(PAIRED)} only")
    if not small:
        raise UsageError(f"data {folder}: no images in {PAIRED[0]}")
    return [Photograph(name, _read(large[name]), small=_read(small[name])) for name in sorted(small)[:count]]


def _read(file: Path) -> np.ndarray:
    with prefixed(str(file)):
        return np.asarray(decode_image(open_image(file)).on_white())


def _folder(path: Path, count: int | None) -> list[Photograph]:
    if path.is_dir():
        files = _images(path)
    elif path.exists():
        files = [path]
    else:
        raise NotFound(f"data {path}: no such file or folder; give a folder of images")
    if not files:
        raise UsageError(f"data {path}: no images; give a folder with {', '.join(sorted(EXTENSIONS))} files")
    photos = []
    for file in files[:count]:
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        image = _read(file)
        with prefixed(str(file)):
            photos.append(_fitted(name, image))
    return photos


def _fitted(name: str, image: np.ndarray, disparity: np.ndarray | None = None) -> Photograph:
    """Scale down to `MAX_SIDE`, then crop the centre to multiples of `MULTIPLE`; treat a disparity map alike."""
    height, width = image.shape[:2]
    scale = min(1.0, MAX_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if min(size) < MULTIPLE:
        raise InvalidInput(f"{width}x{height} pixels: at least {MULTIPLE} px a side are needed")
    box = _centre(*size)
    pixels = np.asarray(Image.fromarray(image[..., :3]).resize(size, Image.Resampling.LANCZOS).crop(box))
    if disparity is None:
        return Photograph(name, pixels)
    finite = np.isfinite(disparity)  # infinite where stereo matching failed: treated as far
    nearness = Image.fromarray(np.where(finite, disparity, disparity[finite].min()).astype(np.float32))
    field = np.asarray(nearness.resize(size, Image.Resampling.BOX).crop(box))
    return Photograph(name, pixels, (field - field.min()) / max(float(np.ptp(field)), 1e-6))


def _centre(width: int, height: int) -> tuple[int, int, int, int]:
    """Return the centred box (left, top, right, bottom) whose sides are multiples of `MULTIPLE`."""
    w, h = width // MULTIPLE * MULTIPLE, height // MULTIPLE * MULTIPLE
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
