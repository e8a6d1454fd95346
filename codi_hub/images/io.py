"""Reading and writing of image files.

A file to be read may be hostile: its size, format and header are checked before it is decoded. A file is written whole
or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageOps

from codi_hub.errors import CodiError, InvalidInput, describe, prefixed
from codi_hub.images.formats import EXTENSIONS, HEIF, readable_formats
from codi_hub.images.metadata import ORIENTATION, Metadata
from codi_hub.images.sixteen_bits import write_png, write_tiff
from codi_hub.images.values import bled, eight_bits, fit_map, without_gamma
from codi_hub.objects import uploaded
from codi_hub.partial import temporary
from codi_hub.paths import display_path
from codi_hub.urls import UrlPath

WRITABLE = ("png", "jpg", "jpeg", "webp", "tif", "tiff")
DEEP = ("png", "tif", "tiff")  # types that are written with 16 bits per channel too
MAX_PIXELS = 120_000_000  # above the largest cameras (102 Mpx), far below what fills the memory
MAX_BYTES = 2 << 30
_KINDS = {".png": "PNG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
    "PNG": {},
    "TIFF": {},
}


@dataclass(slots=True)
class LoadedImage:
    """A decoded input.

    Attributes:
        image: 8-bit RGB with the EXIF orientation applied, or the array that a task's own loader returned.
        alpha: its 8-bit alpha channel, of the same size, or None.
        icc: the ICC profile of its RGB values, or None for sRGB.
        grey: whether the file has grey values alone.
        metadata: what else the file says.
    """

    image: Image.Image | np.ndarray
    alpha: Image.Image | None = None
    icc: bytes | None = None
    grey: bool = False
    metadata: Metadata = field(default_factory=Metadata)

    def on_white(self) -> Image.Image | np.ndarray:
        """Return `image`, where it is transparent composited on white."""
        if self.alpha is None or not isinstance(self.image, Image.Image):
            return self.image
        return Image.composite(self.image, Image.new("RGB", self.image.size, "white"), self.alpha)

    def fitted(self, size: tuple[int, int]) -> LoadedImage:
        """Return the same of (width, height): cut to the shape around its middle, then resized."""
        if not isinstance(self.image, Image.Image):
            return replace(self, image=fit_map(self.image, size))
        alpha = None if self.alpha is None else ImageOps.fit(self.alpha, size, Image.Resampling.LANCZOS)
        return replace(self, image=ImageOps.fit(self.image, size, Image.Resampling.LANCZOS), alpha=alpha)

    def with_alpha(self) -> Image.Image | np.ndarray:
        """Return `image`, as RGBA if there is an alpha channel."""
        if self.alpha is None or not isinstance(self.image, Image.Image):
            return self.image
        return Image.merge("RGBA", (*self.image.split(), self.alpha))


def file_hash(path: Path) -> str:
    """Return the sha256 of a file.

    Raises:
        InvalidInput: no regular file, or one that is empty, over 2 GiB or cannot be read.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise InvalidInput("not a regular file: give an image file")
            if info.st_size == 0:
                raise InvalidInput("the file is empty (0 bytes): copy it again")
            if info.st_size > MAX_BYTES:
                raise InvalidInput(f"the file has {info.st_size} bytes, over the limit of {MAX_BYTES}: make it smaller")
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise InvalidInput(f"the file cannot be read: {exc.strerror}") from exc


def input_hash(path: Path, companions: Sequence[Path] = ()) -> str:
    """Return the sha256 of a file; if others belong to it, the sha256 of all their sha256.

    Raises:
        InvalidInput: see `file_hash`.
    """
    own = file_hash(path)
    if not companions:
        return own
    digests = [own]
    for companion in companions:
        with prefixed(display_path(companion)):
            digests.append(file_hash(companion))
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _open_without_waiting(path: str, flags: int) -> int:
    """Open for reading without waiting: opening a named pipe without a writer would block."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def open_image(path: Path) -> Image.Image:
    """Open a still image and check its header; its pixels are not decoded yet.

    Of a camera's MPO, the main image counts.

    Raises:
        InvalidInput: no regular file, no image, more than `MAX_PIXELS` pixels, an animation, or several pages (the
            first frame alone would silently drop the others).
    """
    if not os.path.isfile(path):  # opening a pipe would block
        raise InvalidInput("not a regular file: give an image file")
    return _open(path, MAX_PIXELS)


def open_bytes(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open a file that is in memory; see `open_image`.

    Args:
        data: the whole file.
        max_pixels: limit of its pixels, at most `MAX_PIXELS`.
    """
    return _open(io.BytesIO(data), max_pixels)


def _open(source: Path | BinaryIO, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(source, formats=readable_formats())
        animated = image.format != "MPO" and getattr(image, "is_animated", False)
    except Exception as exc:  # Pillow's parsers raise anything at all on a hostile header
        raise InvalidInput(f"not a readable image: {_pillow_error(exc)}") from exc
    with contextlib.ExitStack() as closing:
        closing.enter_context(image)
        width, height = image.size
        if width * height > max_pixels:
            raise InvalidInput(f"{width}x{height} pixels, over the limit of {max_pixels}: cut it or make it smaller")
        if animated:
            raise InvalidInput("an animation or several pages: extract the frames to files of their own")
        closing.pop_all()
    return image


def names_image(path: Path) -> bool:
    """Return whether a path ends in the extension of an image format, whether or not it can be read or written."""
    return path.suffix.lower() in {*EXTENSIONS, *HEIF, *Image.registered_extensions(), ".jxl", ".exr"}


def has_alpha(path: Path) -> bool:
    """Return whether the image has an alpha channel, by its header; False if it cannot be read."""
    try:
        with open_image(path) as image:
            return image.has_transparency_data
    except InvalidInput:
        return False


def decode_image(image: Image.Image) -> LoadedImage:
    """Decode an opened image, and close it: 8-bit RGB, EXIF orientation applied, alpha and ICC profile separate.

    Raises:
        InvalidInput: the image data are broken.
    """
    try:
        with image:
            image.load()
            upright = _apply_orientation(image)
            loaded = _convert(upright)
            loaded.metadata = Metadata.of(image, upright)
            return loaded
    except CodiError:
        raise
    except Exception as exc:  # as above: a broken stream may raise anything from SyntaxError to struct.error
        raise InvalidInput(f"the image data are broken: {_pillow_error(exc)}") from exc


def _pillow_error(exc: Exception) -> str:
    if isinstance(exc, Image.UnidentifiedImageError):
        return "the content is not in a known image format"
    if isinstance(exc, Image.DecompressionBombError):
        return f"it has far over {MAX_PIXELS} pixels, the limit: cut it or make it smaller"
    return describe(exc)


def _apply_orientation(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 - EXIF that cannot be read gives no orientation; the pixels are fine
        return image


def _convert(image: Image.Image) -> LoadedImage:
    icc = image.info.get("icc_profile")
    if not isinstance(icc, bytes):
        icc = b""
    space = icc[16:20]  # of the header, ICC.1:2022 section 7.2
    grey = image.mode in ("1", "L", "LA", "La") or image.mode[0] in "IF"
    if image.mode[0] in "IF":
        return _finished(image, *eight_bits(image), icc=None, grey=grey)
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    if space in (b"CMYK", b"GRAY") and (space == b"CMYK") == (image.mode == "CMYK"):
        flat = image if image.mode == "CMYK" else image.convert("L")
        return _finished(image, to_srgb(flat, icc), alpha, icc=None, grey=grey)
    rgb = image.convert("RGBA").convert("RGB") if alpha is not None else image.convert("RGB")
    return _finished(image, rgb, alpha, icc=icc if space == b"RGB " and image.mode != "CMYK" else None, grey=grey)


def _finished(
    stored: Image.Image, rgb: Image.Image, alpha: Image.Image | None, *, icc: bytes | None, grey: bool
) -> LoadedImage:
    """Apply gamma and primaries of a PNG without another statement of its colours, and colour what is transparent."""
    gamma = stored.info.get("gamma")
    if isinstance(gamma, float) and "srgb" not in stored.info and not stored.info.get("icc_profile"):
        rgb = without_gamma(rgb, gamma, stored.info.get("chromaticity"))
    return LoadedImage(rgb if alpha is None else bled(rgb, alpha), alpha, icc, grey)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return (width, height) as shown, by the header of an opened image."""
    try:
        turned = image.getexif().get(ORIENTATION, 1) > 4  # as in `exif_transpose`: 5 to 8 lie on their side
    except Exception:  # noqa: BLE001 - see `_apply_orientation`
        turned = False
    return image.size[::-1] if turned else image.size


def check_shapes(sizes: Mapping[str, tuple[int, int]]) -> None:
    """Check that images are one image at several scales, except for rounding.

    Args:
        sizes: name -> (width, height); the first is what the others are compared with.

    Raises:
        InvalidInput: one has another shape, so that it could only be stretched.
    """
    named = list(sizes.items())
    for name, (width, height) in named[1:]:
        first, (wide, high) = named[0]
        # a side of the smaller image may be off by a pixel, which is `scale` pixels of the larger
        if abs(width * high - height * wide) > max(width, height, wide, high):
            raise InvalidInput(f"{name} measures {width}x{height} and {first} {wide}x{high}: give them one shape")


def to_srgb(image: Image.Image, icc: bytes) -> Image.Image:
    """Convert an image from the colour profile `icc` to sRGB; a broken profile is ignored."""
    try:
        source, target = ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB")
        changed = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        changed = None
    return image.convert("RGB") if changed is None else changed


def with_alpha(pixels: np.ndarray, alpha: Image.Image | None) -> np.ndarray:
    """Return uint8 or uint16 (H, W, 3) pixels with an alpha channel, resized to them, as (H, W, 4).

    Pixels of another shape, such as those with alpha, are returned as they are.
    """
    if alpha is None or pixels.ndim != 3 or pixels.shape[2] != 3:
        return pixels
    height, width = pixels.shape[:2]
    if alpha.size != (width, height):
        alpha = alpha.resize((width, height), Image.Resampling.BICUBIC)
    opacity = np.asarray(alpha)
    return np.dstack([pixels, opacity if pixels.dtype == np.uint8 else opacity.astype(np.uint16) * 257])


def save_image(
    pixels: np.ndarray,
    path: Path,
    icc: bytes | None = None,
    *,
    metadata: Metadata | None = None,
    commit: Callable[[Path], object] | None = None,
) -> None:
    """Write uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or uint16 in a type of `DEEP`, whole or not at all.

    The format is that of the extension. JPEG has no alpha: the image is composited on white.

    Args:
        metadata: written as far as the format holds it.
        commit: see `atomic_file`.

    Raises:
        OSError: the file cannot be written, such as on a full disk.
        ValueError: more pixels than the format can hold.
    """
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    kind = _KINDS.get(path.suffix.lower(), "JPEG")
    options = dict(_SAVE_OPTIONS[kind])
    if icc is not None and pixels.ndim == 3:
        options["icc_profile"] = icc
    if metadata is not None:
        options |= metadata.save_options(kind)
    with atomic_file(path, commit) as file:
        if kind == "TIFF":
            write_tiff(pixels, file, **options)
        elif pixels.dtype == np.uint16:
            write_png(pixels, file, **options)
        else:
            image = Image.fromarray(pixels)
            if kind == "JPEG" and image.mode == "RGBA":
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
            image.save(file, format=kind, **options)


@contextlib.contextmanager
def atomic_file(path: Path, commit: Callable[[Path], object] | None = None) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` when the block ends, and is deleted if the block fails.

    An object in a store is written from a file that is complete.

    Args:
        commit: called with the complete temporary file before it replaces `path`; an exception keeps `path` as it is.
    """
    if isinstance(path, UrlPath):
        with uploaded(path) as part:
            with open(part, "wb") as file:
                yield file
            if commit is not None:
                commit(part)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary(path.parent) as part:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if commit is not None:
            commit(part)
        os.replace(part, path)
