"""What a file says beside its pixels goes through: EXIF upright, XMP, resolution, text; and what made an output."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from codi_hub.images.io import decode_image, open_image, save_image
from codi_hub.images.metadata import Metadata, read_origin

PIXELS = np.full((8, 8, 3), 90, np.uint8)
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF/></x:xmpmeta>'


def source(path: Path, *, orientation: int = 1) -> Path:
    exif = Image.Exif()
    exif[0x010F], exif[0x8298], exif[0x0112] = "ACME", "(c) me", orientation
    exif.get_ifd(0x8769)[0x9003] = "2020:01:02 03:04:05"
    exif.get_ifd(0x8769)[0xA002] = 24
    exif.get_ifd(0x8825)[1] = "N"
    Image.new("RGB", (24, 16)).save(path, exif=exif, dpi=(300, 300), xmp=XMP, comment=b"by me")
    return path


def copied(path: Path, to: Path) -> Image.Image:
    save_image(PIXELS, to, metadata=decode_image(open_image(path)).metadata)
    return Image.open(to)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_metadata_is_kept_in_every_format(tmp_path, kind):
    image = copied(source(tmp_path / "a.jpg", orientation=6), tmp_path / f"x.{kind}")
    exif = image.getexif()
    assert (exif[0x010F], exif[0x8298], exif.get(0x0112, 1)) == ("ACME", "(c) me", 1)
    assert exif.get_ifd(0x8769)[0x9003] == "2020:01:02 03:04:05"
    assert 0xA002 not in exif.get_ifd(0x8769)
    assert exif.get_ifd(0x8825)[1] == "N"
    assert (image.info.get("xmp") or image.info["XML:com.adobe.xmp"].encode()) == XMP
    if kind != "webp":
        assert [round(value) for value in image.info["dpi"]] == [300, 300]


def test_the_tags_of_a_tiff_that_describe_its_pixels_are_left_behind(tmp_path):
    Image.new("RGB", (24, 16)).save(tmp_path / "a.tif", compression="tiff_lzw", description="a wall", dpi=(72, 72))
    exif = copied(tmp_path / "a.tif", tmp_path / "x.png").getexif()
    assert exif[270] == "a wall"
    assert not {256, 257, 258, 259, 273, 279} & set(exif)


def test_the_text_of_a_png(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "a red ball, steps: 4")
    text.add_itxt("Título", "señal 🙂")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=text)
    assert copied(tmp_path / "a.png", tmp_path / "x.png").text == {
        "parameters": "a red ball, steps: 4",
        "Título": "señal 🙂",
    }


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_what_made_an_image(tmp_path, kind):
    origin = {"adapter": "edit:1", "seed": 2**63 - 1, "prompt": "line\nbreak ü"}
    metadata = decode_image(open_image(source(tmp_path / "a.jpg"))).metadata.with_origin(origin)
    save_image(PIXELS, tmp_path / f"x.{kind}", metadata=metadata)
    assert read_origin(tmp_path / f"x.{kind}") == origin
    assert read_origin(tmp_path / "a.jpg") is None
    if kind == "jpg":
        assert Image.open(tmp_path / "x.jpg").info["comment"].startswith(b"by me\n")


def test_too_much_metadata_for_a_jpeg_is_left_out(tmp_path):
    metadata = Metadata(exif=b"Exif\0\0" + b"x" * 70_000, xmp=b"x" * 70_000, comment=b"c" * 70_000)
    save_image(PIXELS, tmp_path / "x.jpg", metadata=metadata)
    assert np.asarray(Image.open(tmp_path / "x.jpg")).shape == (8, 8, 3)
