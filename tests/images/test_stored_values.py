"""Stored values as 8-bit sRGB: floats, gamma, transparency by one grey value, colours under transparency."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codi_hub.images.io import LoadedImage, decode_image, open_image
from codi_hub.images.values import bled


def read(path: Path) -> LoadedImage:
    return decode_image(open_image(path))


def png(path: Path, values: np.ndarray, colour: int, *chunks: tuple[bytes, bytes]) -> Path:
    """Write uint8 or uint16 values as a PNG with further chunks, which Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    depth = 8 * values.itemsize
    rows = b"".join(b"\0" + row.astype(f">u{values.itemsize}").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    extra = b"".join(chunk(*one) for one in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize(
    ("chunks", "shown"),
    [
        ([], 100),
        ([(b"gAMA", struct.pack(">I", 45455))], 100),
        ([(b"gAMA", struct.pack(">I", 100000))], 168),  # linear light: sRGB of 100 / 255
        ([(b"gAMA", struct.pack(">I", 0))], 100),
        ([(b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 100000))], 100),  # PNG 3: sRGB precedes gAMA
    ],
)
def test_gamma_of_a_png(tmp_path, chunks, shown):
    path = png(tmp_path / "x.png", np.full((4, 4, 3), 100, np.uint8), 2, *chunks)
    assert np.asarray(read(path).image)[0, 0].tolist() == [shown] * 3


ADOBE = (0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
D50 = (0.3457, 0.3585, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)


def chromaticity(*values: float) -> tuple[bytes, bytes]:
    return b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in values))


def test_primaries_of_a_png_count_with_its_gamma(tmp_path):
    colours = np.array([[[255, 0, 0], [150, 120, 90], [255, 255, 255], [90, 90, 90]]], np.uint8)
    gamma = b"gAMA", struct.pack(">I", 45455)
    shown = np.asarray(read(png(tmp_path / "x.png", colours, 2, gamma, chromaticity(*ADOBE))).image)[0].astype(int)
    # by the published matrix of Adobe RGB (1998) to sRGB: 1.39836 r - 0.39836 g, g, 1.04293 b - 0.04293 g
    assert shown.tolist() == [[255, 0, 0], [162, 121, 88], [255, 255, 255], [90, 90, 90]]
    white = np.asarray(read(png(tmp_path / "x.png", colours, 2, gamma, chromaticity(*D50))).image)[0, 2]
    assert white.tolist() == [255, 255, 255]


@pytest.mark.parametrize("values", [(0.0,) * 8, (0.3, 0.3) * 4, (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)])
def test_what_is_no_primaries_or_those_of_srgb_changes_nothing(tmp_path, values):
    colours = np.array([[[255, 0, 0], [150, 120, 90]]], np.uint8)
    chunks = [(b"gAMA", struct.pack(">I", 45455)), chromaticity(*values)]
    assert np.array_equal(np.asarray(read(png(tmp_path / "x.png", colours, 2, *chunks)).image), colours)
    alone = np.asarray(read(png(tmp_path / "x.png", colours, 2, chromaticity(*ADOBE))).image)
    assert np.array_equal(alone, colours)  # without gAMA the light of a value is not known


def test_one_transparent_value_of_16_bit_grey(tmp_path):
    values = np.array([[0, 513, 514, 65535]], np.uint16)
    found = read(png(tmp_path / "x.png", values, 0, (b"tRNS", struct.pack(">H", 513))))
    assert np.asarray(found.alpha).tolist() == [[255, 0, 255, 255]]
    assert np.asarray(found.image)[0, :, 0].tolist() == [0, 0, 2, 255]


def test_no_threshold_changes_the_brightness_of_floats(tmp_path):
    for kind, top in (("just", 1.0), ("over", 1.001), ("far", 1.02)):
        Image.fromarray(np.array([[0.0, 0.5, top]], np.float32)).save(tmp_path / f"{kind}.tif")
    middle = [int(np.asarray(read(tmp_path / f"{kind}.tif").image)[0, 1, 0]) for kind in ("just", "over", "far")]
    assert middle == [128, 127, 125]


def test_colours_under_transparency_come_from_nearby():
    rgb, alpha = np.zeros((9, 7, 3), np.uint8), np.zeros((9, 7), np.uint8)
    rgb[2, 2], alpha[2, 2] = (200, 100, 50), 255
    rgb[7, 5], alpha[7, 5] = (10, 20, 30), 1
    found = np.asarray(bled(Image.fromarray(rgb), Image.fromarray(alpha)))
    assert found[2, 2].tolist() == [200, 100, 50]
    assert found[7, 5].tolist() == [10, 20, 30]
    assert found[3, 3].tolist() == [200, 100, 50]
    assert found[6, 4].tolist() == [10, 20, 30]
    assert (found > 0).all()


def test_opaque_and_empty_images_are_as_stored():
    rgb = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    for level in (0, 255):
        assert np.array_equal(bled(rgb, Image.new("L", (4, 4), level)), rgb)


def test_grey_files_are_known(tmp_path):
    for mode in ("L", "RGB", "I;16", "LA", "1"):
        Image.new(mode, (4, 4)).save(tmp_path / "x.png")
        assert read(tmp_path / "x.png").grey == (mode != "RGB"), mode


def test_transparent_images_on_white(tmp_path):
    Image.new("RGBA", (2, 2), (10, 20, 30, 0)).save(tmp_path / "x.png")
    assert np.asarray(read(tmp_path / "x.png").on_white())[0, 0].tolist() == [255, 255, 255]
