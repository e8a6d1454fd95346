"""Printing of results: as text, as JSON, or names alone. Data goes to stdout, messages to stderr."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from codi_hub.cli import streams
from codi_hub.errors import printable


class Output:
    """Prints in the form that the user chose: text, JSON, or quiet.

    Attributes:
        printed: whether the command has printed its JSON document.
    """

    printed = False

    def __init__(self, json: bool = False, quiet: bool = False) -> None:
        self.json = json
        self.quiet = quiet

    def say(self, message: str) -> None:
        """Print a message on stderr, unless quiet."""
        if not self.quiet:
            streams.message(message)

    def result(self, document: Any, text: str, name: str = "") -> None:
        """Print one result: the JSON document, the text, or, if quiet, the name alone."""
        if self.json:
            Output.printed = True
            print(json.dumps(document, indent=2, default=str, ensure_ascii=not streams.is_unicode()))
        elif not self.quiet:
            print(text)
        elif name:
            print(name)

    def table(self, document: Any, header: Sequence[str], rows: Sequence[Sequence[Any]], empty: str) -> None:
        """Print a list: JSON, a table with upper-case headers, or, if quiet, its first column."""
        if self.json or (rows and not self.quiet):
            self.result(document, table(header, rows))
        elif self.quiet:
            for row in rows:
                print(row[0])
        else:
            self.say(empty)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return rows as columns aligned by spaces, numbers to the right."""
    cells = [[name.upper() for name in header], *([cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            text.rjust(w) if r else text.ljust(w) for text, w, r in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in cells
    )


def cell(value: Any) -> str:
    """Return a value as text for people."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def details(document: dict[str, Any]) -> str:
    """Return `key  value` lines, nested mappings indented."""
    lines, width = [], max(map(len, document), default=0)
    for key, value in document.items():
        if isinstance(value, dict) and value:
            lines += [key, *_nested(value, 1)]
        else:
            flat = ", ".join(map(str, value)) if isinstance(value, list | tuple) else "" if value == {} else value
            lines.append(f"{key:<{width}}  {cell(flat)}")
    return "\n".join(map(printable, lines))  # what came from elsewhere may hold what controls a terminal


def _nested(document: dict[str, Any], depth: int) -> list[str]:
    lines = []
    for key, value in document.items():
        inner = isinstance(value, dict) and bool(value)
        lines.append(f"{'  ' * depth}{key}:" + ("" if inner else f" {cell(value)}"))
        lines += _nested(value, depth + 1) if inner else []
    return lines


def size(count: int) -> str:
    """Return bytes as `812 B`, `9.2 MB`."""
    amount = float(count)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} GB"
