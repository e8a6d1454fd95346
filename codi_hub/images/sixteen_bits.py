"""Files with 16 bits per channel, and TIFF: Pillow writes neither RGB nor RGBA of 16 bits."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from codi_hub.images.metadata import SUB_IFDS

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
UP = 2  # filter type of PNG: the difference from the row above
DEFLATE, HORIZONTAL, UNASSOCIATED = 8, 2, 2  # values of TIFF's tags Compression, Predictor and ExtraSamples
GREY, RGB = 1, 2  # of PhotometricInterpretation


def write_png(pixels: np.ndarray, file: BinaryIO, **options: Any) -> None:
    """Write uint16 (H, W), (H, W, 3) or (H, W, 4) as PNG.

    Args:
        options: metadata, as `Image.save` takes them; Pillow writes their chunks, for an image of one pixel.
    """
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels.astype(">u2")).view(np.uint8).reshape(height, -1)
    filtered = np.empty((height, 1 + rows.shape[1]), np.uint8)
    filtered[:, 0], filtered[0, 1:], filtered[1:, 1:] = UP, rows[0], rows[1:] - rows[:-1]
    template = io.BytesIO()
    Image.new(MODES[_channels(pixels)], (1, 1)).save(template, "PNG", **options)
    file.write(template.getvalue()[:8])
    for kind, data in _chunks(template.getvalue()):
        if kind == b"IHDR":
            data = struct.pack(">IIB", width, height, 16) + data[9:]
        elif kind == b"IDAT":
            data = zlib.compress(filtered.tobytes())
        file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (type, data) of each chunk of a PNG."""
    start = 8
    while start < len(png):
        (length,) = struct.unpack_from(">I", png, start)
        yield png[start + 4 : start + 8], png[start + 8 : start + 8 + length]
        start += 12 + length


def write_tiff(
    pixels: np.ndarray,
    file: BinaryIO,
    *,
    exif: bytes = b"",
    xmp: bytes = b"",
    dpi: tuple[float, float] | None = None,
    icc_profile: bytes | None = None,
) -> None:
    """Write uint8 or uint16 (H, W), (H, W, 3) or (H, W, 4) as TIFF, compressed without loss, in one strip."""
    channels, (height, width) = _channels(pixels), pixels.shape[:2]
    samples = pixels.reshape(height, width, channels).astype(f"<u{pixels.itemsize}")
    samples[:, 1:] -= samples[:, :-1].copy()
    data = zlib.compress(samples.tobytes())
    tags = ImageFileDirectory_v2()
    for tag, value in _exif_tags(exif):
        tags[tag] = value
    stored: dict[int, Any] = {256: width, 257: height, 258: (8 * pixels.itemsize,) * channels, 259: DEFLATE}
    stored |= {262: RGB if channels > 1 else GREY, 273: 0, 277: channels, 278: height, 279: len(data), 284: 1}
    stored[317] = HORIZONTAL  # 273, where the data begin, is counted from the end of the tags, as Pillow takes it
    if channels == 4:
        stored[338] = UNASSOCIATED
    if dpi is not None:
        stored |= {282: dpi[0], 283: dpi[1], 296: 2}
    for tag, value in (stored | {tag: value for tag, value in ((700, xmp), (34675, icc_profile)) if value}).items():
        tags[tag] = value
    tags.save(file)
    file.write(data)


def _exif_tags(exif: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the tags of EXIF data; folders of tags as mappings."""
    read = Image.Exif()
    read.load(exif)
    for tag, value in read.items():
        yield tag, dict(read.get_ifd(tag)) if tag in SUB_IFDS else value


def _channels(pixels: np.ndarray) -> int:
    return 1 if pixels.ndim == 2 else pixels.shape[2]
