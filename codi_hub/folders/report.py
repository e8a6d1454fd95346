"""A run as one page: what was asked, what became of each image, and before and after under a slider.

The page holds all that it shows and asks nothing of any network, as its Content-Security-Policy tells the browser. File
names, prompts and errors may be anything: the template escapes them all.
"""

import base64
import contextlib
import io
import os
import stat
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from PIL import Image

from codi_hub.errors import CodiError, UsageError, describe
from codi_hub.folders.plan import Item
from codi_hub.images.io import atomic_file, decode_image, open_image, to_srgb
from codi_hub.paths import display_path, path_text
from codi_hub.reports import JobsReport, RunReport

SIDE = 512  # pixels of a picture's longer side, at most
PICTURED = 200  # items with pictures, at most: a browser has to hold them
SUFFIXES = (".html", ".htm")


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A picture as the page holds it: a data: URI, its size in pixels, and whether one can see through it."""

    uri: str
    width: int
    height: int
    clear: bool


@dataclass(frozen=True, slots=True)
class Page:
    """The page at `path` about a run over `items`, which replaces an earlier one.

    `settings` are what decided how the outputs look. Raises UsageError where the page could not be written, or would
    replace something else: this is to be known before anything is computed.
    """

    path: Path
    items: Sequence[Item]
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.path.suffix.lower() not in SUFFIXES:  # no picture, mask or prompt is called so
            raise UsageError(f"--report {self}: a page's name ends in .html")
        folder = False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.path.parent).close()
            with contextlib.suppress(FileNotFoundError):
                folder = stat.S_ISDIR(os.lstat(self.path).st_mode)
        except OSError as exc:
            raise UsageError(f"--report {self} cannot be written: {describe(exc)}") from exc
        if folder or self._taken():
            raise UsageError(f"--report {self} is a folder or an input: name another file")

    def __str__(self) -> str:
        return display_path(self.path)

    def _taken(self) -> bool:
        """Whether an input has that very name, or the folder of outputs will have it."""
        here, name = _place(self.path), self.path.name
        return any(
            (name == item.input.name and here == _place(item.input))
            or (name in item.output.parts and here in map(_place, item.output.parents))
            for item in self.items
        )

    def write(self, report: RunReport | JobsReport) -> None:
        """Write the page, whole or not at all; one picture at a time is in memory. Raises CodiError, on a full disk."""
        page = _template().stream(
            report=report,
            planned=len(self.items),
            settings=dict(_flat(self.settings)),
            entries=self._entries(report),
            pictured=PICTURED,
            finished=time.strftime("%Y-%m-%d %H:%M"),
        )
        try:
            with warnings.catch_warnings(), atomic_file(self.path) as file:
                warnings.filterwarnings("ignore", module=r"PIL\.")
                page.dump(file, encoding="utf-8", errors="backslashreplace")
        except OSError as exc:
            made = f"{report.ok} ok, {report.failed} failed, {report.skipped} skipped"
            raise CodiError(f"the run is over ({made}), but --report {self}: {describe(exc)}") from exc

    def _entries(self, report: RunReport | JobsReport) -> Iterator[dict[str, Any]]:
        """What the template shows of each item that has a row; an interrupted run has not come to all of them."""
        rows, left = deque(report.items), PICTURED
        for item in self.items:
            if not rows or (rows[0]["input"], rows[0]["output"]) != (path_text(item.input), path_text(item.output)):
                continue
            row = rows.popleft()
            before = thumbnail(item.input) if left else None
            after = thumbnail(item.output) if left and row["status"] != "failed" else None
            left -= before is not None or after is not None
            names = {
                "name": display_path(Path(item.name)),
                "input": display_path(item.input),
                "output": display_path(item.output),
            }
            yield {**row, "prompt": item.prompt, **names, "before": before, "after": after}


def thumbnail(path: Path) -> Thumbnail | None:
    """The picture at `path`, upright and in sRGB, at most `SIDE` pixels a side; None where there is none to be had."""
    if not path.is_file():  # opening a named pipe would wait for ever
        return None
    try:
        image = open_image(path)
        image.draft(None, (2 * SIDE, 2 * SIDE))  # a JPEG can be decoded at a fraction of its size
        shot = decode_image(image)
        whole = shot.with_alpha()
        if not isinstance(whole, Image.Image):
            return None
        whole.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
        if shot.icc:
            alpha = whole.getchannel("A") if whole.mode == "RGBA" else None
            whole = to_srgb(whole.convert("RGB"), shot.icc)
            if alpha is not None:
                whole.putalpha(alpha)
        file = io.BytesIO()
        whole.save(file, format="WEBP", quality=85)
    except (CodiError, OSError, ValueError, MemoryError):
        return None
    uri = "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
    return Thumbnail(uri, *whole.size, clear=whole.mode == "RGBA")


def _place(path: Path) -> str:
    return os.path.join(os.path.realpath(path.parent), path.name)


def _template() -> Template:
    source = resources.files("codi_hub.folders").joinpath("report.html.j2").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source)


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings as a person reads them, without those that say nothing."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        elif isinstance(value, bool):
            yield key, "yes" if value else "no"
        elif value not in (None, ""):
            yield key, value[:12] if key.endswith("sha256") else value
