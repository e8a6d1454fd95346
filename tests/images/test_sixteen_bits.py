"""Files of 16 bits per channel, and TIFF: read back by Pillow and by another reader, with their metadata."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from tifffile import TiffFile

from codi_hub.images.io import save_image
from codi_hub.images.metadata import Metadata, read_origin

SHAPES = [(5, 7), (5, 7, 3), (6, 4, 4), (1, 1, 3)]
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def values(shape: tuple[int, ...], kind: Any = np.uint16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(kind).max, shape, kind, endpoint=True)


def unfiltered(path: Path) -> np.ndarray:
    """Return the samples of a PNG of 16 bits that has the filter Up in every row, by its specification."""
    data = path.read_bytes()
    width, height, depth, colours = struct.unpack_from(">IIBB", data, 16)
    assert depth == 16
    start = data.index(b"IDAT") - 4
    (length,) = struct.unpack_from(">I", data, start)
    rows = np.frombuffer(zlib.decompress(data[start + 8 : start + 8 + length]), np.uint8).reshape(height, -1)
    assert (rows[:, 0] == 2).all()
    samples = np.cumsum(rows[:, 1:], 0, dtype=np.uint8).view(">u2")
    return samples.reshape(height, width, {0: 1, 2: 3, 6: 4}[colours])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_png_has_every_value(tmp_path, shape):
    pixels = values(shape)
    save_image(pixels, tmp_path / "x.png")
    assert np.array_equal(unfiltered(tmp_path / "x.png").reshape(shape), pixels)
    with Image.open(tmp_path / "x.png") as image:  # which checks the checksums, and keeps the upper 8 bits of colours
        image.load()
        assert image.size == shape[1::-1]
        read = np.asarray(image)
        assert np.array_equal(read, pixels if len(shape) == 2 else pixels >> 8)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_tiff_has_every_value(tmp_path, shape, kind):
    pixels = values(shape, kind)
    save_image(pixels, tmp_path / "x.tif")
    with Image.open(tmp_path / "x.tif") as image:
        read = np.asarray(image)
    shallow = kind == np.uint16 and len(shape) == 3
    assert np.array_equal(read, pixels >> 8 if shallow else pixels)
    with TiffFile(tmp_path / "x.tif") as file:
        page = file.pages[0]
        assert (page.bitspersample, page.imagelength, page.imagewidth) == (8 * pixels.itemsize, *shape[:2])


@pytest.mark.parametrize("ext", ["png", "tif"])
def test_metadata_and_profile_are_kept(tmp_path, ext):
    exif = Image.Exif()
    exif[0x8298] = "(c) me"
    exif.get_ifd(0x8769)[0x9003] = "2020:01:02 03:04:05"
    exif.get_ifd(0x8825)[1] = "N"
    metadata = Metadata(exif.tobytes(), b"<x:xmpmeta/>", (300.0, 300.0)).with_origin({"seed": 7})
    save_image(values((4, 4, 3)), tmp_path / f"x.{ext}", PROFILE, metadata=metadata)
    with Image.open(tmp_path / f"x.{ext}") as image:
        image.load()
        found = image.getexif()
        assert found[0x8298] == "(c) me"
        assert found.get_ifd(0x8769)[0x9003] == "2020:01:02 03:04:05"
        assert found.get_ifd(0x8825)[1] == "N"
        assert image.info["icc_profile"] == PROFILE
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert b"xmpmeta" in (image.info.get("xmp") or image.info["XML:com.adobe.xmp"].encode())
    if ext == "png":
        assert read_origin(tmp_path / "x.png") == {"seed": 7}


def test_a_file_is_no_larger_than_that_of_the_same_smooth_image_uncompressed(tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None, :, None].repeat(64, 0).repeat(3, 2)
    for ext in ("png", "tif"):
        save_image(ramp, tmp_path / f"x.{ext}")
        assert (tmp_path / f"x.{ext}").stat().st_size < ramp.nbytes / 8
