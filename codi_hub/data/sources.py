"""Where training examples come from. Whatever the source, example `i` is the same for the same seed, in any order.

An example is a dict: `image` uint8 (size, size, 3) and, where the source has them, `depth` float32 (size, size),
relative inverse depth; `condition` uint8 (size, size, 3); `caption`; `edited` uint8 (size, size, 3); `edit_prompt`.
"""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from codi_hub import jsonl
from codi_hub.data.folders import Example, listed
from codi_hub.errors import InvalidInput, NotFound, UsageError

if TYPE_CHECKING:
    from codi_hub.tasks import Task

DEFAULT_COUNT = 4000  # of pictures made on the fly
# What the columns of a table may be called, the first that is there being taken.
COLUMNS = {
    "image": ("image", "target", "target_image", "input_image", "original_image"),
    "condition": ("condition", "conditioning_image", "condition_image"),
    "depth": ("depth", "depth_map"),
    "edited": ("edited_image", "edited"),
    "caption": ("caption", "text", "prompt"),
    "edit_prompt": ("edit_prompt", "instruction"),
}
PICTURES = ("image", "condition", "edited")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+|[\w-]+")
_log = logging.getLogger("codi_hub.data")


class Source(Protocol):
    """A finite sequence of examples."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Example: ...


def open_source(spec: str, task: Task, *, count: int | None = None, size: int, seed: int = 0) -> Source:
    """Opens training data for a task, and makes sure that the task can use it.

    Args:
        spec: `leaves`, `scenes`, `edits`, `removals` or several with `+` between them, made on the fly, of each in
            turn; a folder of images, of images with a `metadata.jsonl` (see `COLUMNS`; `file_name` is the image), or
            of nothing but two folders with pairs of the same names (see `folders.PAIRED`); a `.parquet` file; a hub id.
        task: a task of `whole_pictures` gets those, their shorter side made `size`, where others get a piece at full
            resolution.
        count: number of examples. More than there are pictures: again, cut elsewhere. Fewer: some, chosen by `seed`.
        size: side of an example, px. Smaller pictures are enlarged.
        seed: of everything random.

    Raises:
        NotFound: there is no such folder, file or dataset. InvalidInput: it has no readable picture, or not the columns
            that the task needs.
    """
    made = spec.split("+")
    if set(made) <= set(GENERATORS):
        source: Source = Generated(tuple(made), count or DEFAULT_COUNT, size, seed)
    else:
        rows, columns = _rows(spec, task)
        source = Table(spec, rows, columns, count, size, seed, whole=task.whole_pictures)
    task.make_pair(source[0], np.random.default_rng(seed))
    return source


# ---- made on the fly


def _leaves(rng: np.random.Generator, size: int) -> Example:
    from codi_hub.data.synthetic.leaves import leaves

    return {"image": leaves(rng, size), "caption": ""}


def _scene(rng: np.random.Generator, size: int) -> Example:
    from codi_hub.data.synthetic.scenes import scene

    made = scene(rng, size)
    return {"image": made.image, "depth": made.depth, "caption": made.caption}


def _edit(rng: np.random.Generator, size: int, **told: Mapping[str, float]) -> Example:
    from codi_hub.data.synthetic.edits import scene_edit

    return scene_edit(rng, size, **told).example


GENERATORS: dict[str, Callable[[np.random.Generator, int], Example]] = {
    "leaves": _leaves,
    "scenes": _scene,
    "edits": _edit,  # scenes and their edited twins, at twice the cost
    # a thing taken away in all: what it hid is learnt long after all else
    "removals": partial(_edit, shares={"remove": 1.0}),
}


@dataclass(frozen=True)
class Generated:
    """Pictures made when asked for, of each kind in turn."""

    kinds: tuple[str, ...]
    count: int
    size: int
    seed: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        _check(index, self.count)
        make = GENERATORS[self.kinds[index % len(self.kinds)]]
        return make(np.random.default_rng([self.seed, index]), self.size)


# ---- tables


@dataclass
class Table:
    """Rows with pictures in them. One that cannot be read gives way to the next, and is noted in `skipped`."""

    name: str
    rows: Sequence[Mapping[str, Any]]
    columns: dict[str, str]  # key of an example -> column
    count: int | None
    size: int
    seed: int
    whole: bool
    skipped: dict[int, str] = field(default_factory=dict)  # row -> why

    def __post_init__(self) -> None:
        order = np.arange(len(self.rows))
        if self.count is not None and self.count < len(order):
            order = np.sort(np.random.default_rng(self.seed).permutation(order)[: self.count])
        self._order = order

    def __len__(self) -> int:
        return self.count or len(self.rows)

    def __getitem__(self, index: int) -> Example:
        _check(index, len(self))
        rng = np.random.default_rng([self.seed, index])
        for step in range(len(self._order)):
            row = int(self._order[(index + step) % len(self._order)])
            if row not in self.skipped:
                try:
                    return _cut(_read(self.rows[row], self.columns), self.size, rng, whole=self.whole)
                except InvalidInput as error:
                    self.skipped[row] = str(error)
                    _log.warning("%s: skipped row %d, %s (%d skipped so far)", self.name, row, error, len(self.skipped))
        raise InvalidInput(f"no readable picture in {self.name}: {next(iter(self.skipped.values()))}")


def _rows(spec: str, task: Task) -> tuple[Sequence[Mapping[str, Any]], dict[str, str]]:
    path = Path(spec).expanduser()
    if path.is_dir():
        metadata = path / "metadata.jsonl"
        rows = _readable(path, _metadata(metadata) if metadata.is_file() else listed(path, task))
        return rows, _columns(spec, list(dict.fromkeys(name for row in rows for name in row)))
    if path.is_file():
        if path.suffix != ".parquet":
            raise UsageError(f"{spec} is no source of pictures: give a folder, a .parquet file or a hub id")
        table = _dataset(spec, "parquet", data_files=str(path))
    elif path.suffix == ".parquet" or not _HUB_ID.fullmatch(spec):
        kinds = ", ".join(GENERATORS)
        raise NotFound(f"no folder or file {spec!r}: give a folder, a .parquet file, a hub id, or one of {kinds}")
    else:
        table = _dataset(spec, spec)
    if not len(table):
        raise InvalidInput(f"{spec} has no rows")
    return table, _columns(spec, table.column_names)


def _columns(name: str, there: Sequence[str]) -> dict[str, str]:
    found = {key: next((alias for alias in aliases if alias in there), None) for key, aliases in COLUMNS.items()}
    if found["image"] is None:
        wanted = ", ".join(COLUMNS["image"])
        raise InvalidInput(f"{name} has no column of pictures ({wanted}); it has {', '.join(there) or 'none'}")
    return {key: column for key, column in found.items() if column is not None}


def _dataset(name: str, kind: str, **where: str) -> Any:
    """A table of the `datasets` library, its images not yet decoded; of several splits, `train` or the first."""
    import datasets

    try:
        splits = datasets.load_dataset(kind, **where)
    except Exception as error:  # whatever a loader, an archive or the network raises, the data cannot be had
        why = " ".join(str(error.__cause__ or error).split())
        raise NotFound(f"cannot open the dataset {name}: {why[:300] or type(error).__name__}") from error
    table = splits["train"] if "train" in splits else next(iter(splits.values()))
    for column, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
    return table


# ---- folders


def _metadata(file: Path) -> Iterator[Example]:
    """Rows of a metadata.jsonl: `file_name`, `X_file_name` become `image`, `X`; paths are relative to its folder."""
    files = {alias for key in (*PICTURES, "depth") for alias in COLUMNS[key]}
    for _, given in jsonl.objects(file):
        row = {("image" if name == "file_name" else name.removesuffix("_file_name")): v for name, v in given.items()}
        yield {name: str(file.parent / v) if name in files and isinstance(v, str) else v for name, v in row.items()}


def _readable(folder: Path, rows: Iterator[Example]) -> list[Example]:
    """The rows whose pictures are there and can be opened, by their headers; the others are counted in a warning."""
    good, bad = [], []
    for row in rows:
        try:
            for key in PICTURES:
                for path in (row[name] for name in COLUMNS[key] if isinstance(row.get(name), str)):
                    _opened(path).close()
            good.append(row)
        except InvalidInput as error:
            bad.append(str(error))
    if not good:
        raise InvalidInput(f"no readable picture in {folder}" + (f": {bad[0]}" if bad else ", or in folders below it"))
    if bad:
        _log.warning("%s: skipped %d of %d pictures; the first: %s", folder, len(bad), len(bad) + len(good), bad[0])
    return good


# ---- one row


def _read(row: Mapping[str, Any], columns: Mapping[str, str]) -> Example:
    """Decodes a row. Raises InvalidInput."""
    given = {key: row[column] for key, column in columns.items() if row.get(column) is not None}
    if "image" not in given:
        raise InvalidInput("the row has no image")
    readers = dict.fromkeys(PICTURES, _picture) | {"depth": _depth}
    return {key: readers.get(key, str)(value) for key, value in given.items()}


def _opened(value: Any) -> Image.Image:
    from codi_hub.images.io import READABLE

    if isinstance(value, dict):  # as `datasets` stores an image
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, str | bytes):
        raise InvalidInput(f"a {type(value).__name__} where a picture should be")
    if isinstance(value, str) and os.path.exists(value) and not os.path.isfile(value):  # a pipe would be waited for
        raise InvalidInput(f"{value} is no regular file")
    try:
        return Image.open(io.BytesIO(value) if isinstance(value, bytes) else value, formats=READABLE)
    except Exception as error:  # Pillow's parsers raise anything at all on a hostile header
        what = value if isinstance(value, str) else f"{len(value)} bytes"
        raise InvalidInput(f"{what} is no readable picture ({type(error).__name__})") from error


def _picture(value: Any) -> np.ndarray:
    from codi_hub.images.io import decode_image

    return np.asarray(decode_image(_opened(value)).image)


def _depth(value: Any) -> np.ndarray:
    """A map in its own units, float32 (H, W), from a file, from stored bytes, or from nested lists."""
    from codi_hub.tasks.depth import Depth, gray

    if isinstance(value, str):
        return np.asarray(Depth().load(Path(value)))
    return gray(np.asarray(value, np.float32) if isinstance(value, list) else _opened(value))


def _cut(example: Example, size: int, rng: np.random.Generator, *, whole: bool) -> Example:
    """The same square of everything in the example that is a picture, first resized to the image's size."""
    height, width = example["image"].shape[:2]
    short = min(height, width)
    factor = size / short if whole or short < size else 1.0
    width, height = max(size, round(width * factor)), max(size, round(height * factor))
    left, top = int(rng.integers(width - size + 1)), int(rng.integers(height - size + 1))
    for key in ("image", "condition", "edited", "depth"):
        if key in example:
            field_ = example[key]
            if field_.shape[:2] != (height, width):
                method = Image.Resampling.BILINEAR if key == "depth" else Image.Resampling.BICUBIC
                field_ = np.asarray(Image.fromarray(field_).resize((width, height), method))
            example[key] = np.ascontiguousarray(field_[top : top + size, left : left + size])
    return example


def _check(index: int, count: int) -> None:
    if not 0 <= index < count:
        raise IndexError(f"example {index} of {count}")
