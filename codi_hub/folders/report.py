"""The report page of a run: settings, status of each image, and input and output under a slider.

The page is one HTML file that loads nothing from any host, enforced by its Content-Security-Policy. File names, prompts
and errors may contain anything: the template escapes them.
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
from codi_hub.images.io import MAX_BYTES, atomic_file, decode_image, open_image, to_srgb
from codi_hub.objects import local_copies
from codi_hub.paths import display_path, path_text
from codi_hub.reports import JobsReport, RunReport
from codi_hub.urls import UrlPath, place

SIDE = 512  # px, the longest side of a thumbnail
MAX_ITEMS = 200  # with thumbnails: a browser has to hold them in memory
SUFFIXES = (".html", ".htm")


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """An embedded image: a data: URI, its size in pixels, and whether it has transparency."""

    uri: str
    width: int
    height: int
    transparent: bool


@dataclass(frozen=True, slots=True)
class ReportPage:
    """The report page of a run, written to `path`; an earlier page is replaced.

    Attributes:
        items: of the run.
        settings: that decided how the outputs look.

    Raises:
        UsageError: the page could not be written or would replace another file. It is raised before the run, so that
            nothing is computed in vain.
    """

    path: Path
    items: Sequence[Item]
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        if isinstance(place(self.path), UrlPath):
            raise UsageError(f"report {place(self.path)}: the page is written to a local file: name one")
        if self.path.suffix.lower() not in SUFFIXES:  # no image, mask or prompt has this extension
            raise UsageError(f"report {self}: the name must end in .html")
        folder = False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.path.parent).close()
            with contextlib.suppress(FileNotFoundError):
                folder = stat.S_ISDIR(os.lstat(self.path).st_mode)
        except OSError as exc:
            raise UsageError(f"report {self} cannot be written: {describe(exc)}") from exc
        if folder or self._taken():
            raise UsageError(f"report {self} is a folder or an input: choose another file")

    def __str__(self) -> str:
        return display_path(self.path)

    def _taken(self) -> bool:
        """Return whether the path is an input, or will be an output folder."""
        here, name = _place(self.path), self.path.name
        return any(
            (name == item.input.name and not isinstance(item.input, UrlPath) and here == _place(item.input))
            or (name in item.output.parts and here in map(_place, _local_parents(item.output)))
            for item in self.items
        )

    def write(self, report: RunReport | JobsReport) -> None:
        """Write the page, whole or not at all; one image is in memory at a time. Raises CodiError (a full disk)."""
        page = _template().stream(
            report=report,
            planned=len(self.items),
            settings=dict(_flat(self.settings)),
            entries=self._entries(report),
            max_items=MAX_ITEMS,
            finished=time.strftime("%Y-%m-%d %H:%M"),
        )
        try:
            with warnings.catch_warnings(), atomic_file(self.path) as file:
                warnings.filterwarnings("ignore", module=r"PIL\.")
                page.dump(file, encoding="utf-8", errors="backslashreplace")
        except OSError as exc:
            counts = f"{report.ok} ok, {report.failed} failed, {report.skipped} skipped"
            raise CodiError(f"the run is complete ({counts}), but not its report {self}: {describe(exc)}") from exc

    def _entries(self, report: RunReport | JobsReport) -> Iterator[dict[str, Any]]:
        """Yield what the template shows of each item that has a row: all of them, unless the run was interrupted."""
        rows, left = deque(report.items), MAX_ITEMS
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
    """Return the image at `path` in sRGB, orientation applied, at most `SIDE` pixels a side; None if it has none."""
    try:
        with local_copies([path], MAX_BYTES) as local:
            return _thumbnail(local(path))
    except CodiError:
        return None


def _thumbnail(path: Path) -> Thumbnail | None:
    if not path.is_file():  # opening a named pipe would block
        return None
    try:
        image = open_image(path)
        image.draft(None, (2 * SIDE, 2 * SIDE))  # a JPEG can be decoded at a fraction of its size
        loaded = decode_image(image)
        whole = loaded.with_alpha()
        if not isinstance(whole, Image.Image):
            return None
        whole.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
        if loaded.icc:
            alpha = whole.getchannel("A") if whole.mode == "RGBA" else None
            whole = to_srgb(whole.convert("RGB"), loaded.icc)
            if alpha is not None:
                whole.putalpha(alpha)
        file = io.BytesIO()
        whole.save(file, format="WEBP", quality=85)
    except (CodiError, OSError, ValueError, MemoryError):
        return None
    uri = "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
    return Thumbnail(uri, *whole.size, transparent=whole.mode == "RGBA")


def _local_parents(path: Path) -> Sequence[Path]:
    return () if isinstance(path, UrlPath) else path.parents


def _place(path: Path) -> str:
    return os.path.join(os.path.realpath(path.parent), path.name)


def _template() -> Template:
    source = resources.files("codi_hub.folders").joinpath("report.html.j2").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source)


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the settings for people, without empty ones."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        elif isinstance(value, bool):
            yield key, "yes" if value else "no"
        elif value not in (None, ""):
            yield key, value[:12] if key.endswith("sha256") else value
