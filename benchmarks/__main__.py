"""Run the sections of the benchmark, or those named, and write the results into docs/performance.md."""

from __future__ import annotations

import argparse
import importlib
import re
from pathlib import Path

from benchmarks.bases import BASES
from benchmarks.table import Row, markdown, merged

SECTIONS = ("steps", "folders", "swap", "memory", "distillation", "startup", "registry")
DOCS = Path(__file__).parents[1] / "docs"
RESULTS, PAGE = DOCS / "results" / "performance.json", DOCS / "performance.md"
TABLE = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- /table -->)", re.DOTALL)


def main() -> None:
    """Run the sections and update the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--on", default="nano,sd15", help="bases: nano, sd15 (Stable Diffusion 1.5's, random weights)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of every comparison; the median counts")
    given = parser.parse_args()
    if unknown := set(given.sections) - set(SECTIONS):
        parser.error(f"{', '.join(sorted(unknown))}: a section is one of {', '.join(SECTIONS)}")
    if unknown := set(given.on.split(",")) - set(BASES):
        parser.error(f"--on {', '.join(sorted(unknown))}: of {', '.join(BASES)}")
    for section in given.sections or SECTIONS:
        results: list[Row] = []
        for row in importlib.import_module(f"benchmarks.{section}").rows(given.on.split(","), given.rounds):
            print(*row.cells(), row.note, sep=" | ", flush=True)
            results.append(row)
        before, after = TABLE.split(PAGE.read_text())
        PAGE.write_text(before + markdown(merged(RESULTS, results)) + "\n" + after)


if __name__ == "__main__":
    main()
