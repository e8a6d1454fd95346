"""The image types that are read, by format and file name extension."""

from __future__ import annotations

import functools
import importlib
import importlib.util

from PIL import Image

# By name, because Pillow would otherwise try every format it knows, and opening an EPS starts Ghostscript.
FORMATS: dict[str, tuple[str, ...]] = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".mpo"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".jpf"),
    "TGA": (".tga",),
}
HEIF = (".heic", ".heif", ".hif")
HEIF_PLUGIN = "pillow_heif"
READS_HEIF = importlib.util.find_spec(HEIF_PLUGIN) is not None
EXTENSIONS = frozenset(ext for group in FORMATS.values() for ext in group) | frozenset(HEIF if READS_HEIF else ())
JPEG_EXTENSIONS = frozenset(FORMATS["JPEG"])
ARRAYS = frozenset({".npy", ".npz"})
"""Extensions of arrays, for tasks whose inputs are maps."""


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats that are read; HEIF where `pillow_heif` is installed."""
    Image.init()
    if READS_HEIF:
        importlib.import_module(HEIF_PLUGIN).register_heif_opener()
    return tuple(name for name in (*FORMATS, "HEIF") if name in Image.OPEN)  # a Pillow may be built without some


def why_not_read(extension: str) -> str:
    """Return why files of a type are no inputs, with the remedy if there is one."""
    if extension.lower() in HEIF:
        return "HEIC needs a plug-in: pip install pillow-heif"
    return "no image type that this task reads"
