"""What an image file says beside its pixels: EXIF, XMP, resolution, text, and what made it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from codi_hub.errors import InvalidInput

ORIGIN = "codi"  # key of the text that says what made an image; in JPEG the beginning of the comment
XMP_KEY = "XML:com.adobe.xmp"  # of a PNG's text
MAX_SEGMENT = 65_500  # bytes of a JPEG segment, less its header
ORIENTATION = 0x0112
PIXEL_SIZES = (0xA002, 0xA003)  # in the Exif IFD; the output may have another size
EXIF_IFD = 0x8769
SUB_IFDS = (EXIF_IFD, 0x8825)  # the second is of GPS
# TIFF 6.0 and DNG tags of how the pixels are stored, XMP, IPTC, Photoshop and ICC, which a TIFF's own header has.
STRUCTURE = frozenset(
    {*range(254, 270), *range(273, 282), 284, 292, 293, 297, 301, *range(317, 348), *range(512, 533)}
    | {700, 33723, 34377, 34675, 37724, *range(50706, 51200)}
)


@dataclass(frozen=True)
class Metadata:
    """Metadata of a file; empty by default.

    Attributes:
        exif: with the orientation reset, since pixels are upright, and without the pixel size.
        dpi: pixels per inch, (x, y).
        text: a PNG's text by its keywords.
        comment: a JPEG's.
    """

    exif: bytes = b""
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None
    text: Mapping[str, str] = field(default_factory=dict)
    comment: bytes = b""

    @classmethod
    def of(cls, image: Image.Image, upright: Image.Image) -> Metadata:
        """Read what can be read of a decoded image; `upright` is the same with its orientation applied."""
        found: dict[str, Any] = {}
        # `exif_transpose` corrects the XMP, and drops the tags of a TIFF.
        for name, read, where in (("exif", _exif, image), ("xmp", _xmp, upright), ("dpi", _dpi, image)):
            with suppress(Exception):  # a broken field is left out; the pixels are fine
                found[name] = read(where)
        text = {
            key: str(value)
            for key, value in getattr(image, "text", {}).items()
            if key != XMP_KEY and not key.startswith("Raw profile type")
        }
        comment = image.info.get("comment")
        return cls(**found, text=text, comment=comment if isinstance(comment, bytes) else b"")

    def with_origin(self, origin: Mapping[str, Any]) -> Metadata:
        """Return the same with what made the image, as JSON."""
        line = json.dumps(origin)
        comment = b"\n".join(filter(None, (self.comment, f"{ORIGIN} {line}".encode())))
        return replace(self, text={**self.text, ORIGIN: line}, comment=comment)

    def save_options(self, kind: str) -> dict[str, Any]:
        """Return arguments of `Image.save` for a format: what it can hold of this."""
        options: dict[str, Any] = {}
        limit = MAX_SEGMENT if kind == "JPEG" else None
        for name, value in {"exif": self.exif, "xmp": self.xmp if kind != "PNG" else b""}.items():
            if value and (limit is None or len(value) <= limit):
                options[name] = value
        if self.dpi is not None and kind != "WEBP":
            options["dpi"] = self.dpi
        if kind == "JPEG" and self.comment:
            options["comment"] = self.comment[-MAX_SEGMENT:]
        if kind == "PNG" and (self.text or self.xmp):
            options["pnginfo"] = self._png_text()
        return options

    def _png_text(self) -> PngImagePlugin.PngInfo:
        info = PngImagePlugin.PngInfo()
        for key, value in self.text.items():
            info.add_text(key, value)
        if self.xmp:
            info.add_itxt(XMP_KEY, self.xmp.decode("utf-8", "replace"))
        return info


def read_origin(path: Path) -> dict[str, Any] | None:
    """Return what made an image, as `Metadata.with_origin` wrote it; None for other files. Raises InvalidInput."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            image.load()
            line = getattr(image, "text", {}).get(ORIGIN)
            if line is None:
                lines = image.info.get("comment", b"").decode("utf-8", "replace").splitlines()
                line = next((one.removeprefix(f"{ORIGIN} ") for one in lines if one.startswith(f"{ORIGIN} ")), None)
            value = None if line is None else json.loads(line)
    except (OSError, ValueError, SyntaxError) as error:
        raise InvalidInput(f"not a readable image: {error}") from error
    return value if isinstance(value, dict) else None


def _exif(image: Image.Image) -> bytes:
    exif = image.getexif()
    for tag in [tag for tag in exif if tag in STRUCTURE or tag == ORIENTATION]:
        del exif[tag]
    details = exif.get_ifd(EXIF_IFD)
    for tag in PIXEL_SIZES:
        details.pop(tag, None)
    return exif.tobytes() if len(exif) else b""


def _xmp(image: Image.Image) -> bytes:
    value = image.info.get("xmp") or image.info.get(XMP_KEY) or b""
    return value.encode() if isinstance(value, str) else bytes(value)


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    x, y = (float(value) for value in image.info["dpi"])
    return (x, y) if all(math.isfinite(value) and 1 <= value <= 65_535 for value in (x, y)) else None
