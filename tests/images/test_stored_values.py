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
