"""Depth maps in files and arrays, in their own units: float32 (H, W)."""

import math
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from codi_hub.errors import InvalidInput
from codi_hub.images.filters import luma
from codi_hub.images.formats import ARRAYS
from codi_hub.images.io import MAX_PIXELS


def as_map(image: Image.Image | np.ndarray) -> np.ndarray:
    """Convert an image of any mode, or an array (H, W), (H, W, 1) or (H, W, 3), to float32 (H, W) in its own units.

    Raises:
        InvalidInput: an array of another shape, or values that float32 cannot hold.
    """
    if isinstance(image, Image.Image):
        if image.mode not in ("L", "F") and not image.mode.startswith("I"):
            image = image.convert("L")
        return np.asarray(image).astype(np.float32)
    if image.ndim == 3 and image.shape[2] in (1, 3):
        image = image[..., 0] if image.shape[2] == 1 else luma(image)
    if image.ndim != 2 or not image.size:
        raise InvalidInput(f"an array of shape {image.shape} is not a depth map: give (H, W)")
    with np.errstate(over="ignore"):
        values = image.astype(np.float32)
    if np.isinf(values).sum() > np.isinf(image).sum():
        raise InvalidInput(f"a depth map with values beyond {np.finfo(np.float32).max:.1e}: scale it down")
    return values


def read_map(path: Path) -> np.ndarray:
    """Read the depth map of an image file, a .npy or a .npz file. Raises InvalidInput."""
    if path.suffix.lower() in ARRAYS:
        return _read_npy(path) if path.suffix.lower() == ".npy" else _read_npz(path)
    try:
        with Image.open(path) as image:
            return as_map(ImageOps.exif_transpose(image))
    except (OSError, ValueError, SyntaxError) as error:
        raise InvalidInput(f"the image data are broken: {error}") from error


def _read_npy(path: Path) -> np.ndarray:
    """Read a plain array of numbers; anything else is refused before much is read. Raises InvalidInput."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # never unpickles; the header is checked against the size
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise InvalidInput(f"not a readable .npy array: {' '.join(str(error).split())}") from error
    _check_array(array.shape, array.dtype)
    return as_map(np.squeeze(array))


def _read_npz(path: Path) -> np.ndarray:
    """Read the array `depth`, or the only one, of a .npz file; its size is checked first. Raises InvalidInput."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            chosen = "depth.npy" if "depth.npy" in names else names[0] if len(names) == 1 else None
            if chosen is None:
                found = ", ".join(name.removesuffix(".npy") for name in names[:5]) or "none"
                raise InvalidInput(f"a .npz file needs one array, or one named depth; it has {found}")
            with archive.open(chosen) as file:
                version = np.lib.format.read_magic(file)
                header = (
                    np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = header(file)
            _check_array(shape, dtype)
            with archive.open(chosen) as file:
                return as_map(np.squeeze(np.lib.format.read_array(file, allow_pickle=False)))
    except (OSError, ValueError, SyntaxError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise InvalidInput(f"not a readable .npz file: {' '.join(str(error).split())}") from error


def _check_array(shape: tuple[int, ...], dtype: np.dtype) -> None:
    if dtype.kind not in "fiub":
        raise InvalidInput(f"an array of {dtype} is not a depth map: save it as numbers")
    if math.prod(shape) > MAX_PIXELS:
        raise InvalidInput(f"an array of shape {shape} is over the limit of {MAX_PIXELS} values: make it smaller")
