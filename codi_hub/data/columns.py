"""Columns of tables: the names that the fields of an example may have, and those that a user gives them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from codi_hub.errors import InvalidInput, UsageError, one_line

# Names that a column of a table may have; the first one present is used.
COLUMNS = {
    "image": ("image", "target", "target_image", "input_image", "original_image"),
    "condition": ("condition", "conditioning_image", "condition_image"),
    "depth": ("depth", "depth_map"),
    "edited": ("edited_image", "edited"),
    "caption": ("caption", "text", "prompt"),
    "edit_prompt": ("edit_prompt", "instruction"),
}
IMAGE_KEYS = ("image", "condition", "edited")
IMAGE_COLUMNS = frozenset(alias for key in (*IMAGE_KEYS, "depth") for alias in COLUMNS[key])
FIELDS = {"text": "caption", "target": "image", "instruction": "edit_prompt"}  # other names for `columns`


def named_columns(text: str) -> dict[str, str]:
    """Return the columns by field that `FIELD=COLUMN,...` names. Raises UsageError."""
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, column = (piece.strip() for piece in part.partition("="))
        key = FIELDS.get(name, name)
        if key not in COLUMNS or not column:
            fields = ", ".join((*COLUMNS, *FIELDS))
            raise UsageError(f"data.columns {one_line(part, 60)}: write FIELD=COLUMN, with a field of {fields}")
        if key in found:
            raise UsageError(f"data.columns {one_line(part, 60)}: {key} is named twice")
        found[key] = column
    return found


def find_columns(
    name: str, present: Sequence[str], asked: Mapping[str, str], images: Collection[str] | None = None
) -> dict[str, str]:
    """Map the keys of an example to the columns of a table, those that were asked for first.

    Args:
        name: of the table.
        present: its columns.
        asked: columns by key.
        images: the columns that may hold an image; None: any.

    Raises:
        InvalidInput: a column that is not there, or none of images.
    """
    columns = {}
    for key, aliases in COLUMNS.items():
        allowed = present if images is None or key not in (*IMAGE_KEYS, "depth") else images
        if key in asked and asked[key] not in allowed:
            listing = one_line(", ".join(sorted(allowed)), 200)
            raise InvalidInput(f"data.columns {key}={asked[key]}: {name} has no such column; it has {listing}")
        free = (alias for alias in aliases if alias in allowed and alias not in asked.values())
        columns[key] = asked.get(key) or next(free, None)
    if columns["image"] is None:
        wanted = ", ".join(COLUMNS["image"])
        listing = one_line(", ".join(present), 200) or "none"
        raise InvalidInput(
            f"{name} has no column of images ({wanted}); it has {listing}: name one with columns image=NAME"
        )
    return {key: column for key, column in columns.items() if column is not None}
