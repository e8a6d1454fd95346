"""Sources of training examples. Example `i` of a source is the same for the same seed, in any order of access.

An example is a dict: `image` uint8 (size, size, 3) and, where the source has them, `depth` float32 (size, size),
relative inverse depth; `condition` uint8 (size, size, 3); `caption`; `edited` uint8 (size, size, 3); `edit_prompt`.
"""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from codi_hub import jsonl, seeds
from codi_hub.data import shards
from codi_hub.data.columns import COLUMNS, IMAGE_COLUMNS, IMAGE_KEYS, find_columns, named_columns
from codi_hub.data.folders import DataTask, Example, hidden, listed, warn_unlisted
from codi_hub.errors import InvalidInput, NotFound, UsageError, one_line, prefixed
from codi_hub.images.depth_maps import as_map, read_map
from codi_hub.images.formats import readable_formats
from codi_hub.images.io import check_shapes, decode_image, upright_size
from codi_hub.images.sidecars import METADATA, named

DEFAULT_COUNT = 4000  # synthetic examples
MAX_HELD_OUT = 24  # pairs that are never used for training, at most; a tenth of a small data set
HUB_SECONDS = 10.0
NAMED = 8  # unreadable files that a warning lists
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+|[\w-]+")
_log = logging.getLogger("codi_hub.data")


class Source(Protocol):
    """A finite sequence of examples."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Example: ...


def open_source(
    spec: str, task: DataTask, *, count: int | None = None, size: int, seed: int = 0, columns: str = ""
) -> Source:
    """Open the training data of a task and check that the task can use it.

    Args:
        spec: `leaves`, `scenes`, `edits`, `removals`, or several joined by `+`: synthetic examples of each in turn; a
            folder of images, of images with a `metadata.jsonl` (see `COLUMNS`; `file_name` is the image), or of exactly
            two folders with pairs of the same names (see `folders.PAIRED`); `.tar` or `.parquet` files by path or
            pattern; a hub id.
        task: a task of `whole_images` gets images resized to a shorter side of `size`, others a crop at full
            resolution.
        count: number of examples. More than there are images: the images repeat with other crops. Fewer: a subset
            chosen by `seed`.
        size: side of an example, px. Smaller images are enlarged.
        seed: of everything random.
        columns: `FIELD=COLUMN,...` for columns of a table that have names of their own; others are found by `COLUMNS`.

    Raises:
        NotFound: no such folder, file or dataset.
        UsageError: `columns` for a source that is no table, or with a field that there is not.
        InvalidInput: no readable image, or not the columns that the task needs.
    """
    kinds = spec.split("+")
    asked = named_columns(columns)
    if set(kinds) <= set(GENERATORS):
        if asked:
            raise UsageError(f"data.columns {columns}: {spec} is generated, and has no columns")
        source: Source = Synthetic(tuple(kinds), count or DEFAULT_COUNT, size, seed)
    else:
        rows, found = _rows(spec, task, asked)
        source = Table(spec, rows, found, count, size, seed, whole=task.whole_images)
    task.make_pair(source[0], seeds.subset(seed))
    return source


def absolute(spec: str) -> str:
    """Return a source that is a folder or file as its absolute path, which means the same in any working directory."""
    path = Path(spec).expanduser()
    named = path.exists() or shards.is_pattern(spec)
    return spec if set(spec.split("+")) <= set(GENERATORS) or not named else os.path.abspath(path)


def split(length: int) -> tuple[range, range]:
    """Return the (training, held-out) indices of a source of `length` examples; the last ones are held out.

    Raises:
        InvalidInput: fewer than two examples.
    """
    if length < 2:
        raise InvalidInput(
            f"the data has {length} usable pair{'s' * (length != 1)}: at least 2 are needed, one to hold out"
        )
    held_out = min(MAX_HELD_OUT, max(1, length // 10))
    return range(length - held_out), range(length - held_out, length)


# ---- synthetic


def _leaves(rng: np.random.Generator, size: int) -> Example:
    from codi_hub.data.synthetic.leaves import leaves

    return {"image": leaves(rng, size), "caption": ""}


def _scene(rng: np.random.Generator, size: int) -> Example:
    from codi_hub.data.synthetic.scenes import scene

    drawn = scene(rng, size)
    return {"image": drawn.image, "depth": drawn.depth, "caption": drawn.caption}


def _edit(rng: np.random.Generator, size: int, **shares: Mapping[str, float]) -> Example:
    from codi_hub.data.synthetic.edits import scene_edit

    return scene_edit(rng, size, **shares).example


GENERATORS: dict[str, Callable[[np.random.Generator, int], Example]] = {
    "leaves": _leaves,
    "scenes": _scene,
    "edits": _edit,  # scenes before and after an edit; twice the cost of a scene
    # removals only: filling in what an object hid takes the most training
    "removals": partial(_edit, shares={"remove": 1.0}),
}


@dataclass(frozen=True)
class Synthetic:
    """Synthetic examples, rendered on access, of each kind in turn."""

    kinds: tuple[str, ...]
    count: int
    size: int
    seed: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        _check(index, self.count)
        generate = GENERATORS[self.kinds[index % len(self.kinds)]]
        return generate(seeds.example(self.seed, index), self.size)


# ---- tables


@dataclass
class Table:
    """Rows with images. An unreadable row is replaced by the next one and recorded in `skipped`."""

    name: str
    rows: Sequence[Mapping[str, Any]]
    columns: dict[str, str]  # key of an example -> column
    count: int | None
    size: int
    seed: int
    whole: bool
    skipped: dict[int, str] = field(default_factory=dict)  # row -> reason

    def __post_init__(self) -> None:
        order = np.arange(len(self.rows))
        if self.count is not None and self.count < len(order):
            order = np.sort(seeds.subset(self.seed).permutation(order)[: self.count])
        self._order = order

    def __len__(self) -> int:
        return self.count or len(self.rows)

    def __getitem__(self, index: int) -> Example:
        _check(index, len(self))
        rng = seeds.example(self.seed, index)
        for step in range(len(self._order)):
            row = int(self._order[(index + step) % len(self._order)])
            if row not in self.skipped:
                try:
                    return _crop(_read(self.rows[row], self.columns), self.size, rng, whole=self.whole)
                except InvalidInput as error:
                    self.skip(row, str(error))
        raise InvalidInput(f"no readable image in {self.name}: {next(iter(self.skipped.values()))}")

    def skip(self, row: int, reason: str) -> None:
        """Record a row that cannot be read, and log a warning."""
        self.skipped[row] = reason
        _log.warning("%s: skipped row %d, %s (%d skipped so far)", self.name, row, reason, len(self.skipped))


def _rows(spec: str, task: DataTask, asked: dict[str, str]) -> tuple[Sequence[Mapping[str, Any]], dict[str, str]]:
    """Return the rows of a folder, files or dataset, and the column of each key of an example."""
    path = Path(spec).expanduser()
    if path.is_dir():
        if asked:
            raise UsageError(f"data.columns: the columns of a folder have fixed names: rename them in its {METADATA}")
        files = [file for file in sorted(path.rglob(METADATA), key=lambda file: file.parent) if not hidden(file, path)]
        lines = chain.from_iterable(_metadata(file) for file in files)
        rows = _readable(path, lines if files else listed(path, task))
        if files:
            warn_unlisted(path, rows, IMAGE_COLUMNS, task)
        return rows, find_columns(spec, list(dict.fromkeys(name for row in rows for name in row)), {})
    if files := shards.matching(spec):
        if path.suffix.lower() == shards.TAR:
            tars = shards.Tars(spec, files)
            return tars, find_columns(spec, tars.column_names, asked, tars.images)
        table = _dataset(spec, "parquet", data_files=[str(file) for file in files])
    elif path.is_file():
        raise UsageError(f"{spec} is not a source of images: give a folder, .tar or .parquet files, or a hub id")
    elif path.suffix in (shards.TAR, shards.PARQUET) or not HUB_ID.fullmatch(spec):
        kinds = ", ".join(GENERATORS)
        raise NotFound(
            f"no folder or file {spec!r}: give a folder, .tar or .parquet files, a hub id, or one of {kinds}"
        )
    else:
        table = _hub_dataset(spec)
    if not len(table):
        raise InvalidInput(f"{spec} has no rows")
    return table, find_columns(spec, table.column_names, asked)


def _hub_dataset(name: str) -> Any:
    """Open a dataset of the hub, or of an earlier download where the hub cannot be reached. Raises NotFound."""
    reason = _unreachable(name)
    if reason is None:
        return _dataset(name, name)
    import datasets
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True  # else it tries for half a minute
    try:
        return _dataset(name, name)
    except NotFound as error:
        raise NotFound(
            f"no folder or file {name!r}, no earlier download of a dataset of that name, and the hub cannot be asked "
            f"({reason}): check the name"
        ) from error
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def _unreachable(name: str) -> str | None:
    """Ask the hub once for a dataset; return why it cannot be asked, or None. Raises NotFound where it has none."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        HfApi().dataset_info(name, timeout=HUB_SECONDS)
    except RepositoryNotFoundError as error:
        raise NotFound(f"no folder or file {name!r}, and no dataset of that name on the hub: check the name") from error
    except Exception as error:  # noqa: BLE001 - no network, a proxy's page, an old server
        return one_line(error, 100) or type(error).__name__
    return None


def _dataset(name: str, kind: str, **where: Any) -> Any:
    """Open a table of the `datasets` library with undecoded images; of several splits, `train` or the first."""
    import datasets

    try:
        splits = datasets.load_dataset(kind, **where)
    except Exception as error:  # loaders, archives and the network raise anything
        why = " ".join(str(error.__cause__ or error).split())
        raise NotFound(f"cannot open the dataset {name}: {why[:300] or type(error).__name__}") from error
    table = splits["train"] if "train" in splits else next(iter(splits.values()))
    for column, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
    return table


# ---- folders


def _metadata(file: Path) -> Iterator[Example]:
    """Read a metadata.jsonl: `file_name`, `X_file_name` become `image`, `X`; paths are relative to its folder."""
    for _, line in jsonl.objects(file):
        row = {("image" if name == "file_name" else name.removesuffix("_file_name")): v for name, v in line.items()}
        for column in IMAGE_COLUMNS & row.keys():
            if isinstance(value := row[column], str):
                row[column] = str(named(file.parent, value) or file.parent / value)
        yield row


def _readable(folder: Path, rows: Iterator[Example]) -> list[Example]:
    """Return the rows whose images exist and have a readable header; log a warning that counts the others."""
    good, bad = [], []
    for row in rows:
        try:
            sizes: dict[str, tuple[int, int]] = {}
            for key in IMAGE_KEYS:
                for path in (row[name] for name in COLUMNS[key] if isinstance(row.get(name), str)):
                    with _opened(path) as image:
                        sizes[path] = upright_size(image)
            check_shapes(sizes)
            good.append(row)
        except InvalidInput as error:
            bad.append(str(error))
    if not good:
        raise InvalidInput(f"no readable image in {folder}" + (f": {bad[0]}" if bad else ", or in folders below it"))
    if bad:
        more = f" and {len(bad) - NAMED} more" if bad[NAMED:] else ""
        listing = "; ".join(bad[:NAMED]) + more
        _log.warning("%s: skipped %d of %d images: %s", folder, len(bad), len(bad) + len(good), listing)
    return good


# ---- one row


def _read(row: Mapping[str, Any], columns: Mapping[str, str]) -> Example:
    """Decode a row. Raises InvalidInput."""
    values = {key: row[column] for key, column in columns.items() if row.get(column) is not None}
    if "image" not in values:
        raise InvalidInput("the row has no image")
    readers = dict.fromkeys(IMAGE_KEYS, _image) | {"depth": _depth}
    example: Example = {key: readers.get(key, str)(value) for key, value in values.items()}
    check_shapes({key: value.shape[1::-1] for key, value in example.items() if key in readers})
    return example


def _opened(value: Any) -> Image.Image:
    """Open an image by path or bytes, pixels not yet decoded. Raises InvalidInput."""
    if isinstance(value, dict):  # as `datasets` stores an image
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, str | bytes):
        raise InvalidInput(f"a {type(value).__name__} where an image should be")
    if isinstance(value, str) and os.path.exists(value) and not os.path.isfile(value):  # opening a pipe would block
        raise InvalidInput(f"{value} is not a regular file")
    try:
        return Image.open(io.BytesIO(value) if isinstance(value, bytes) else value, formats=readable_formats())
    except Exception as error:  # Pillow's parsers raise anything at all on a hostile header
        what = value if isinstance(value, str) else f"{len(value)} bytes"
        raise InvalidInput(f"{what} is not a readable image ({type(error).__name__})") from error


def _image(value: Any) -> np.ndarray:
    image = _opened(value)
    with prefixed(value) if isinstance(value, str) else nullcontext():
        return np.asarray(decode_image(image).on_white())


def _depth(value: Any) -> np.ndarray:
    """Read a depth map in its own units, float32 (H, W), from a file, stored bytes or nested lists."""
    if isinstance(value, str):
        return read_map(Path(value))
    return as_map(np.asarray(value, np.float32) if isinstance(value, list) else _opened(value))


def _crop(example: Example, size: int, rng: np.random.Generator, *, whole: bool) -> Example:
    """Cut the same random square from all images of an example, after resizing them to the size of `image`."""
    height, width = example["image"].shape[:2]
    short = min(height, width)
    factor = size / short if whole or short < size else 1.0
    width, height = max(size, round(width * factor)), max(size, round(height * factor))
    left, top = int(rng.integers(width - size + 1)), int(rng.integers(height - size + 1))
    for key in (*IMAGE_KEYS, "depth"):
        if key in example:
            pixels = example[key]
            if pixels.shape[:2] != (height, width):
                method = Image.Resampling.BILINEAR if key == "depth" else Image.Resampling.BICUBIC
                pixels = np.asarray(Image.fromarray(pixels).resize((width, height), method))
            example[key] = np.ascontiguousarray(pixels[top : top + size, left : left + size])
    return example


def _check(index: int, count: int) -> None:
    if not 0 <= index < count:
        raise IndexError(f"example {index} of {count}")
