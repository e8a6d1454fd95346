"""The images of an evaluation for other tools, and the values that those measured."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from codi_hub.errors import InvalidInput, NotFound, describe
from codi_hub.evaluation.measured import Measured, with_columns
from codi_hub.evaluation.metrics import Column, SetScores

REFERENCES, INPUTS, MASKS = "references", "inputs", "masks"  # folders beside those of the rows
KEYS = ("row", "image")


def folder_name(row: str) -> str:
    """Return the name of a row's folder: "depth:2, 4 steps" becomes "depth-2-4-steps"."""
    return re.sub(r"[^\w.@+]+", "-", row).strip("-.") or "row"


def image_name(number: int) -> str:
    """Return the name of the k-th image of a row, without extension."""
    return f"{number:05d}"


def save_images(measured: Measured, folder: Path) -> None:
    """Write every output, reference and input as PNG: FOLDER/ROW/00000.png, FOLDER/references/00000.png.

    Raises:
        InvalidInput: the folder cannot be written.
    """
    rows = dict(measured.outputs) | ({REFERENCES: measured.references} if measured.references else {})
    rows |= measured.inputs
    try:
        for row, images in rows.items():
            (place := folder / folder_name(row)).mkdir(parents=True, exist_ok=True)
            for number, image in enumerate(images):
                Image.fromarray(image).save(place / f"{image_name(number)}.png")
    except OSError as error:
        raise InvalidInput(f"{folder}: cannot be written ({describe(error)})") from error


@dataclass(frozen=True)
class ImportedMetrics:
    """Values of a CSV file: (row, image) -> metric -> value."""

    file: Path
    names: list[str]
    values: dict[tuple[str, str], dict[str, float]]


def read_metrics(file: Path) -> ImportedMetrics:
    """Read a CSV file with the columns `row` and `image`, as `save_images` names them, and one per metric.

    Raises:
        NotFound, InvalidInput: no such file, a missing column, a repeated image, or a value that is no finite number.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            names = [name for name in reader.fieldnames or () if name not in KEYS]
            if missing := [key for key in KEYS if key not in (reader.fieldnames or ())]:
                raise InvalidInput(f"{file}: no column {missing[0]!r}: row, image and one per metric are needed")
            values: dict[tuple[str, str], dict[str, float]] = {}
            for line in reader:
                place = f"{file}, line {reader.line_num}"
                key = folder_name(line["row"] or ""), Path(line["image"] or "").stem
                if key in values:
                    raise InvalidInput(f"{place}: {line['row']} {line['image']} for the second time")
                values[key] = {name: _number(line[name], f"{place}, {name}") for name in names}
    except FileNotFoundError as error:
        raise NotFound(f"{file}: no such file") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidInput(f"{file}: not a CSV file in UTF-8 ({describe(error)})") from error
    if not names:
        raise InvalidInput(f"{file}: no column besides row and image")
    return ImportedMetrics(file, names, values)


def _number(text: str | None, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InvalidInput(f"{where}: {text!r} is no finite number")
    return value


def with_imported(measured: Measured, imported: ImportedMetrics) -> Measured:
    """Add the mean of each imported metric, for the rows of which every image has a value.

    Raises:
        InvalidInput: a row or an image that this evaluation does not have.
    """
    sizes = {folder_name(row): len(images) for row, images in measured.outputs.items()}
    known = {(row, image_name(k)) for row, count in sizes.items() for k in range(count)}
    for row, image in imported.values:
        if (row, image) not in known:
            rows = ", ".join(sizes)
            raise InvalidInput(
                f"{imported.file}: this evaluation has no image {image} of a row {row}; its rows: {rows}"
            )
    taken = {*measured.table.columns}
    names = {name: f"imported {name}" if name in taken else name for name in imported.names}
    means: dict[str, dict[str, float | None]] = {}
    for row, images in measured.outputs.items():
        found = [imported.values.get((folder_name(row), image_name(k))) for k in range(len(images))]
        whole = [one for one in found if one is not None]
        if len(whole) == len(images):
            means[row] = {new: float(np.mean([one[old] for one in whole])) for old, new in names.items()}
    described = {
        new: Column(new, 4, "see its tool", f"measured by another tool: {imported.file.name}") for new in names.values()
    }
    note = f"Of {imported.file.name}: {', '.join(names.values())}"
    return with_columns(measured, described, SetScores(means, notes=(note,)), taken)
