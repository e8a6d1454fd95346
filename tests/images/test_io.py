"""Every kind of file in, a whole file or none out."""

import os
from pathlib import Path

import numpy as np
import pytest
from corpus import SRGB, bombs, broken, encoded
from PIL import Image

from codi_hub.errors import InvalidInput, UsageError, describe
from codi_hub.images.io import MAX_BYTES, LoadedImage, decode_image, file_hash, open_image, save_image, with_alpha
from codi_hub.paths import display_path, path_text

HOSTILE = broken() | bombs()


def read(path: Path) -> LoadedImage:
    return decode_image(open_image(path))


def hash_and_read(path: Path) -> LoadedImage:
    file_hash(path)
    return read(path)


def ramp(width: int = 32, height: int = 16) -> np.ndarray:
    x = np.linspace(0, 255, width, dtype=np.uint8)
    return np.stack([np.tile(x, (height, 1)), np.full((height, width), 90, np.uint8), np.tile(x[::-1], (height, 1))], 2)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LA", "PA", "RGBA", "I;16", "I", "F"])
def test_every_mode_becomes_rgb_of_the_same_brightness(tmp_path, mode):
    kind = "jpg" if mode in ("CMYK", "YCbCr") else "tif"
    source = Image.fromarray(ramp())
    if mode in ("I;16", "I", "F"):
        grey = np.asarray(source.convert("L"), np.float64) / 255
        limit, dtype = {"I;16": (65535, np.uint16), "I": (65535, np.int32), "F": (1, np.float32)}[mode]
        Image.fromarray((grey * limit).astype(dtype)).save(tmp_path / f"x.{kind}")
    else:
        source = source.convert("L") if mode == "LA" else source
        (source.convert("P").convert(mode) if mode == "PA" else source.convert(mode)).save(tmp_path / f"x.{kind}")
    found = read(tmp_path / f"x.{kind}")
    assert (found.image.mode, found.image.size) == ("RGB", (32, 16))
    assert (found.alpha is not None) == (mode in ("LA", "PA", "RGBA"))
    expected = source.convert("L" if mode in ("I;16", "I", "F") else "P" if mode == "PA" else mode)
    difference = np.asarray(found.image, int).mean() - np.asarray(expected.convert("RGB"), int).mean()
    assert abs(difference) < 6


def test_a_16_bit_png_keeps_its_range(tmp_path):
    Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16)).save(tmp_path / "x.png")
    assert np.asarray(read(tmp_path / "x.png").image)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_palette_transparency_is_alpha(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putdata([0, 1])
    image.save(tmp_path / "x.png", transparency=1)
    found = read(tmp_path / "x.png")
    assert np.asarray(found.alpha).tolist() == [[255, 0]]
    assert np.asarray(found.image)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    image = Image.fromarray(ramp())
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "x.png", exif=exif)
    found = read(tmp_path / "x.png").image
    turned = np.asarray(image)
    assert found.size == ((16, 32) if orientation > 4 else (32, 16))
    if orientation == 6:
        assert np.array_equal(np.asarray(found), np.rot90(turned, -1))
    elif orientation == 3:
        assert np.array_equal(np.asarray(found), np.rot90(turned, 2))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_broken_exif_is_ignored(tmp_path):
    Image.fromarray(ramp()).save(tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert read(tmp_path / "x.jpg").image.size == (32, 16)


def test_profiles(tmp_path):
    image = Image.fromarray(ramp())
    image.save(tmp_path / "rgb.png", icc_profile=SRGB)
    assert read(tmp_path / "rgb.png").icc == SRGB
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", icc_profile=SRGB)
    assert read(tmp_path / "cmyk.jpg").icc is None
    image.save(tmp_path / "junk.png", icc_profile=b"junk" * 5)
    assert read(tmp_path / "junk.png").icc is None
    image.convert("L").save(tmp_path / "grey.png", icc_profile=b"\0" * 16 + b"GRAY" + b"\0" * 108)
    found = read(tmp_path / "grey.png")
    assert found.icc is None
    assert np.array_equal(np.asarray(found.image)[..., 0], np.asarray(image.convert("L")))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_one_clear_line(tmp_path, case):
    data, message = HOSTILE[case]
    path = tmp_path / "x.png"
    path.write_bytes(data)
    with pytest.raises(InvalidInput, match=message) as caught:
        hash_and_read(path)
    assert "\n" not in describe(caught.value)
    assert len(describe(caught.value)) < 200


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_random_damage_is_an_image_or_invalid_input(tmp_path):
    rng = np.random.default_rng(1)
    noise = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8))
    outcomes = set()
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "TGA"):
        whole = encoded(noise, kind)
        for turn in range(30):
            damaged = bytearray(whole)
            for place in rng.integers(0, len(whole), 4):
                damaged[place] = rng.integers(256)
            end = len(whole) if turn % 2 else rng.integers(1, len(whole))
            (tmp_path / "x").write_bytes(bytes(damaged[:end]))
            try:
                outcomes.add(read(tmp_path / "x").image.mode)
            except InvalidInput as exc:
                outcomes.add("two lines" if "\n" in str(exc) else "invalid")
    assert outcomes == {"RGB", "invalid"}


def test_what_is_not_a_regular_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "dir.png").mkdir()
    for name in ("pipe.png", "dir.png", "loop.png", "none.png"):
        with pytest.raises(InvalidInput, match=r"not a regular file|cannot be read"):
            file_hash(tmp_path / name)
        with pytest.raises(InvalidInput, match="not a regular file"):
            open_image(tmp_path / name)


def test_a_sparse_giant_is_not_read(tmp_path):
    with open(tmp_path / "x.png", "wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(InvalidInput, match="over the limit of 2147483648"):
        file_hash(tmp_path / "x.png")


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp", "new/folders/x.png"])
def test_saved_with_profile_and_alpha(tmp_path, name):
    pixels = np.dstack([ramp(), np.full((16, 32), 0, np.uint8)])
    save_image(pixels, tmp_path / name, SRGB)
    with Image.open(tmp_path / name) as back:
        assert back.info["icc_profile"] == SRGB
        assert back.mode == ("RGB" if name.endswith("jpg") else "RGBA")
        if name.endswith("jpg"):
            assert np.asarray(back).min() >= 254  # clear everywhere: white
    assert [path.suffix for path in (tmp_path / name).parent.iterdir()] == [Path(name).suffix]


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 3)])
def test_saved_pixels_come_back(tmp_path, shape):
    pixels = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    save_image(pixels, tmp_path / "x.png", SRGB)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "x.png")), pixels.squeeze())


def test_alpha_is_resized_to_the_output():
    alpha = Image.fromarray(np.repeat(np.array([[0, 255]], np.uint8), 2, 0))
    out = with_alpha(np.zeros((8, 8, 3), np.uint8), alpha)
    assert out.shape == (8, 8, 4)
    assert (out[:, 0, 3] == 0).all()
    assert (out[:, -1, 3] == 255).all()
    grey = np.zeros((8, 8, 1), np.uint8)
    assert with_alpha(grey, alpha) is grey


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "x.png").write_bytes(b"old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        save_image(ramp(), tmp_path / "x.png")
    assert describe(caught.value) == "No space left on device"
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
    assert (tmp_path / "x.png").read_bytes() == b"old"


def test_one_line_for_any_exception():
    assert describe(MemoryError()) == "not enough memory"
    assert describe(UsageError("two\nlines")) == "two lines"
    assert describe(ValueError("x" * 999)).startswith("ValueError: xxx")
    assert len(describe(ValueError("x" * 999))) == 300


def test_names_can_be_printed_and_stored():
    odd = Path(os.fsdecode(b"\xff\n.png"))
    assert path_text(odd) == "\\xff\n.png"
    assert display_path(odd) == "\\xff\\n.png"
    assert display_path(Path("\ud800.png")) == "\\ud800.png"  # no name of a file, but JSON can hold it
    assert path_text(Path("é🙂.png")) == display_path(Path("é🙂.png")) == "é🙂.png"
