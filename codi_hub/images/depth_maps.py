"""Depth maps in files and arrays, in their own units: float32 (H, W)."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from codi_hub.errors import InvalidInput
from codi_hub.images.filters import luma
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
    """Read the depth map of an image file or a .npy file. Raises InvalidInput."""
    if path.suffix.lower() == ".npy":
        return _read_npy(path)
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
    if array.dtype.kind not in "fiub":
        raise InvalidInput(f"an array of {array.dtype} is not a depth map: save it as numbers")
    if array.size > MAX_PIXELS:
        raise InvalidInput(f"an array of shape {array.shape} is over the limit of {MAX_PIXELS} values: make it smaller")
    return as_map(np.squeeze(array))
