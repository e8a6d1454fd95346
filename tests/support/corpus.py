"""Files as a hostile or careless world hands them over, and what a run has to make of each."""

import functools
import io
import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# What comes of a file: why it fails (a part of the line), or how an upright RGB picture of it looks.
Outcome = str | Image.Image


def photograph(width: int = 24, height: int = 16) -> Image.Image:
    """Something smooth with every colour in it, no two corners alike."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    return Image.fromarray((np.stack([x, y, 1 - (x + y) / 2], 2) * 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes, *before: bytes) -> bytes:
    """An RGB PNG of any declared size, whatever its data; `before`: chunks that come first."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + body


def zeros(count: int) -> bytes:
    """So many zero bytes, deflated to a few thousandths, and never held as a whole."""
    press = zlib.compressobj(1)
    block = bytes(1 << 20)
    parts = [press.compress(block[: min(len(block), count - k)]) for k in range(0, count, len(block))]
    return b"".join([*parts, press.flush()])


@functools.cache
def bombs() -> dict[str, tuple[bytes, str]]:
    """Small files that would fill the memory: their bytes, and what is said."""
    stuffed = png_chunk(b"zTXt", b"a\0\0" + zeros(80 << 20))
    profile = png_chunk(b"iCCP", b"a\0\0" + zeros(80 << 20))
    return {
        "bomb-header.png": (png(60_000, 60_000, zlib.compress(bytes(1 << 20))), "far over 120000000 pixels"),
        "bomb-real.png": (png(20_000, 10_000, zeros(60_001 * 10_000)), "far over 120000000 pixels, the limit: cut it"),
        "bomb-smaller.png": (png(12_001, 10_000, zlib.compress(b"")), "over the limit of 120000000"),
        "bomb-short.png": (png(5_000, 5_000, zlib.compress(bytes(1 << 20))), "broken"),
        "bomb-text.png": (png(4, 4, zlib.compress(bytes(52)), stuffed), "not a readable image"),
        "bomb-profile.png": (png(4, 4, zlib.compress(bytes(52)), profile), "not a readable image"),
    }


def broken() -> dict[str, tuple[bytes, str]]:
    """Bytes that are no picture: name -> the bytes, and what is said."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    jpeg, whole = encoded(noise, "JPEG"), encoded(noise, "PNG")
    frames = [Image.new("L", (4, 4), k) for k in (0, 99)]
    several = {"save_all": True, "append_images": frames[1:]}
    return {
        "zero.png": (b"", "empty"),
        "words.png": (b"hello", "not in a known image format"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "broken"),
        "cut.png": (whole[: len(whole) // 2], "broken"),
        "header-only.png": (whole[:30], "not a readable image|broken"),
        "checksum.png": (whole[:60] + b"\0\0\0\0" + whole[64:], "broken"),
        "moves.gif": (encoded(frames[0], "GIF", **several), "animation"),
        "pages.tif": (encoded(frames[0], "TIFF", **several), "pages"),
        "postscript.png": (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
            "not in a known image format",
        ),
        "nan.tif": (encoded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"), "not numbers"),
    }


def odd() -> dict[str, tuple[bytes, Image.Image]]:
    """Pictures of unusual making: name -> the bytes, and how they look."""
    image = photograph()
    grey = image.convert("L")
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    palette = image.quantize(16)
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "jpeg-inside.png": (encoded(image, "JPEG", quality=95), image),
        "png-inside.jpg": (encoded(image, "PNG"), image),
        "dot.png": (encoded(photograph(1, 1), "PNG"), photograph(1, 1)),
        "cmyk.jpg": (encoded(image.convert("CMYK"), "JPEG", quality=95), image),
        "cmyk-wrong-profile.jpg": (encoded(image.convert("CMYK"), "JPEG", quality=95, icc_profile=SRGB), image),
        "sixteen.png": (encoded(sixteen, "PNG"), grey.convert("RGB")),
        "palette.png": (encoded(palette, "PNG", transparency=0), palette.convert("RGB")),
        "grey-alpha.png": (encoded(image.convert("LA"), "PNG"), grey.convert("RGB")),
        "turned.jpg": (encoded(image, "JPEG", quality=95, exif=turned), image.transpose(Image.Transpose.ROTATE_270)),
        "profile.png": (encoded(image, "PNG", icc_profile=SRGB), image),
        "junk-profile.png": (encoded(image, "PNG", icc_profile=b"junk" * 5), image),
        "line\nbreak.png": (encoded(image, "PNG"), image),
        "\x1b[2Jclears.png": (encoded(image, "PNG"), image),
        "🙂 é.png": (encoded(image, "PNG"), image),
        "-rf.png": (encoded(image, "PNG"), image),
        "n" * 250 + ".png": (encoded(image, "PNG"), image),
        os.fsdecode(b"\xff.png"): (encoded(image, "PNG"), image),
    }


def no_files(folder: Path) -> dict[str, str]:
    """What has a picture's name and is none: name -> what is said. Folders, and links to them, are no items."""
    os.mkfifo(folder / "pipe.png")
    here = os.getcwd()
    os.chdir(folder)  # the path of a socket is at most some hundred bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket.png")
    finally:
        os.chdir(here)
    (folder / "itself.png").symlink_to(folder / "itself.png")
    (folder / "nowhere.png").symlink_to(folder / "no such file.png")
    (folder / "folder.png").mkdir()
    (folder / "round").symlink_to(folder)
    said = {"pipe.png": "not a regular file", "itself.png": "symbolic links", "nowhere.png": "No such file"}
    return said | {"socket.png": "cannot be read|not a regular file"}


def pictures(folder: Path) -> dict[str, Outcome]:
    """Everything above as files of one folder."""
    outcomes: dict[str, Outcome] = {}
    made: list[dict[str, tuple[bytes, Any]]] = [bombs(), broken(), odd()]
    for name, (data, outcome) in (entry for some in made for entry in some.items()):
        (folder / name).write_bytes(data)
        outcomes[name] = outcome
    return outcomes | no_files(folder)


class Trap:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.mark),)


def npy(header: str) -> bytes:
    """A .npy file of a header and nothing else."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def depth_maps(folder: Path) -> dict[str, Outcome]:
    """Depth maps as arrays, the right ones beside all kinds of wrong ones."""
    ramp = np.tile(np.arange(24, dtype=np.float32), (16, 1))
    holes = ramp.copy()
    holes[3, 4:9] = [np.nan, np.inf, -np.inf, np.nan, np.inf]
    like = photograph()
    good = {
        "ramp": ramp,
        "holes": holes,
        "constant": np.full((16, 24), 7.0),
        "integers": ramp.astype(np.int64),
        "yes-no": ramp > 9,
        "a-third-axis": ramp[..., None],
    }
    bad = {
        "nan": (np.full((4, 4), np.nan), "no finite value"),
        "inf": (np.full((4, 4), np.inf), "no finite value"),
        "four-axes": (np.zeros((2, 3, 4, 5)), r"shape \(2, 3, 4, 5\) is not a depth map"),
        "one-axis": (ramp[0], r"shape \(24,\) is not a depth map"),
        "nothing": (np.zeros((0, 4)), "is not a depth map|not a readable"),
        "beyond-float": (ramp.astype(np.float64) * 1e300, "values beyond 3.4e"),
        "complex": (ramp.astype(np.complex64), "complex64 is not a depth map"),
        "text": (np.array([["a"]]), "<U1 is not a depth map"),
        "record": (np.zeros((4, 4), [("x", "f4")]), "is not a depth map"),
    }
    for name, array in [*good.items(), *((name, array) for name, (array, _) in bad.items())]:
        np.save(folder / f"{name}.npy", array)
    np.save(folder / "pickled.npy", np.array([Trap(folder / "executed")], dtype=object), allow_pickle=True)
    written = {
        "huge-shape.npy": (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (99999, 99999)}"), "not a readable"),
        "negative.npy": (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-4, 4)}"), "not a readable"),
        "code.npy": (npy("__import__('os').mkdir('executed')"), "not a readable"),
        "endless-header.npy": (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", "not a readable"),
        "cut.npy": (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4, 4)}") + bytes(60), "not a readable"),
        "words.npy": (b"hello", "not a readable"),
    }  # fmt: skip
    for name, (data, _) in written.items():
        (folder / name).write_bytes(data)
    outcomes: dict[str, Outcome] = {f"{name}.npy": like for name in good}
    outcomes |= {f"{name}.npy": said for name, (_, said) in bad.items()}
    outcomes |= {name: said for name, (_, said) in written.items()}
    return outcomes | {"pickled.npy": "not a readable"}


def masked(folder: Path) -> dict[str, Outcome]:
    """Pictures with masks beside them, of which only some fit."""
    image, hole = photograph(), Image.new("L", (24, 16))
    hole.paste(255, (5, 5, 15, 12))
    empty = Image.new("L", (24, 16))
    clear = image.convert("RGBA")
    clear.putalpha(hole.point(lambda level: 255 - level))
    masks: dict[str, tuple[bytes | None, Outcome]] = {
        "good": (encoded(hole, "PNG"), image),
        "palette": (encoded(hole.convert("P"), "PNG"), image),
        "sixteen": (encoded(Image.fromarray(np.asarray(hole).astype(np.uint16) * 257), "PNG"), image),
        "another-size": (encoded(hole.resize((12, 8)), "PNG"), "measures 12x8 and the image 24x16"),
        "no-white": (encoded(empty, "PNG"), "has no white"),
        "cut": (encoded(hole, "PNG")[:60], "the mask .*cut.mask.png: .*broken|readable"),
        "words": (b"hello", "the mask .*words.mask.png: not a readable image"),
        "zero": (b"", r"zero.mask.png: the file is empty"),
        "bomb": (bombs()["bomb-header.png"][0], "the mask .*bomb.mask.png: .*limit"),
        "none": (None, "no hole to fill"),
    }
    for name, (data, _) in masks.items():
        image.save(folder / f"{name}.png")
        if data is not None:
            (folder / f"{name}.mask.png").write_bytes(data)
    image.save(folder / "pipe.png")
    os.mkfifo(folder / "pipe.mask.png")
    clear.save(folder / "clear.png")
    return {f"{name}.png": outcome for name, (_, outcome) in masks.items()} | {
        "pipe.png": "pipe.mask.png: not a regular file",
        "clear.png": image,
    }
