"""Images of requests and answers: uploads and data URIs in; encoded files out, or links to them for a while."""

from __future__ import annotations

import base64
import binascii
import io
import re
import secrets
import threading
import time
from collections import OrderedDict
from typing import Any

import numpy as np
from PIL import Image

from codi_hub.errors import InvalidInput, UsageError
from codi_hub.images.io import MAX_PIXELS, decode_image, open_bytes

DATA_URI = re.compile(r"data:[\w.+/-]*(?:;[\w=.-]+)*;base64,")
TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
SAVED: dict[str, dict[str, Any]] = {"png": {"compress_level": 1}, "jpeg": {"quality": 95}, "webp": {"quality": 95}}


def from_bytes(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an upload: RGB, or RGBA where it has an alpha channel. Raises InvalidInput."""
    loaded = decode_image(open_bytes(data, max_pixels))
    image = loaded.with_alpha()
    assert isinstance(image, Image.Image)
    if loaded.icc is not None:
        image.info["icc_profile"] = loaded.icc
    return image


def from_text(text: str) -> bytes:
    """Return the bytes of a data URI, or of plain Base64.

    Raises:
        UsageError: a link to somewhere else, which is never fetched, or no Base64.
    """
    if re.match(r"[a-zA-Z][\w+.-]*:", text) and not text.startswith("data:"):
        raise UsageError("image: links are not fetched; send the file, or a data URI with Base64")
    start = DATA_URI.match(text)
    if text.startswith("data:") and start is None:
        raise UsageError("image: a data URI has to be Base64: data:image/png;base64,...")
    try:
        return base64.b64decode(text[start.end() if start else 0 :], validate=True)
    except (binascii.Error, ValueError):
        raise UsageError("image: neither a data URI nor Base64") from None


def hole(mask: Image.Image) -> Image.Image:
    """Return a mask as `Hub.generate` takes it, white in the hole.

    OpenAI's masks are transparent where the image is to be changed; those without transparency are white there.
    """
    if mask.mode == "RGBA":
        alpha = np.asarray(mask.getchannel("A"))
        if alpha.min() < 255:
            return Image.fromarray(255 - alpha)
    return mask.convert("L")


def encoded(image: Image.Image, form: str) -> bytes:
    """Return an image as a file of a form in `TYPES`; transparency is composited on white in a JPEG."""
    if form == "jpeg" and image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, form, **SAVED[form], icc_profile=image.info.get("icc_profile"))
    return buffer.getvalue()


class Kept:
    """Encoded images that are kept in memory for a while, each under a name that cannot be guessed.

    Args:
        seconds: after which an image is dropped.
        budget: bytes of all images; the oldest are dropped first.
    """

    def __init__(self, seconds: float = 3600, budget: int = 256 << 20) -> None:
        self.seconds, self.budget = seconds, budget
        self._files: OrderedDict[str, tuple[float, bytes, str]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, data: bytes, form: str) -> str:
        """Keep an image; return its name."""
        name = f"{secrets.token_urlsafe(24)}.{form}"
        with self._lock:
            self._files[name] = time.monotonic() + self.seconds, data, TYPES[form]
            self._drop()
        return name

    def get(self, name: str) -> tuple[bytes, str] | None:
        """Return an image and its media type; None where it is not there, or no longer."""
        with self._lock:
            self._drop()
            found = self._files.get(name)
        return found and found[1:]

    def _drop(self) -> None:
        now, size = time.monotonic(), sum(len(data) for _, data, _ in self._files.values())
        for name, (end, data, _) in [*self._files.items()]:
            if end > now and (size <= self.budget or len(self._files) == 1):
                break
            size -= len(data)
            del self._files[name]


def read(data: bytes, max_pixels: int, name: str) -> Image.Image:
    """Decode an upload; an error begins with the field's name."""
    try:
        return from_bytes(data, max_pixels)
    except InvalidInput as error:
        raise UsageError(f"{name}: {error}") from None
