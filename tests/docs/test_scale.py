"""The cost of a large run: the page shows what the command prints, and the simulation agrees with the limits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.cost import Figures, limits, simulated, table

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"


def test_the_page_shows_what_the_command_prints():
    text = PAGE.read_text()
    assert table(Figures()) in text
    assert table(Figures(images_per_s=10, input_bytes=500_000, output_bytes=1_000_000)) in text


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("devices", {"images_per_s": 2}),
        ("store latency", {"store_latency": 4}),
        ("store bytes", {"store_bytes_per_s": 1e5}),
        ("registry", {"registry_writes": 3}),
    ],
)
def test_the_simulation_runs_at_the_rate_of_the_part_that_saturates(part, changes):
    given = replace(Figures(images_per_s=20), **changes)
    allowed = limits(given, 8)
    assert min(allowed, key=lambda name: allowed[name]) == part
    assert simulated(given, 8) == pytest.approx(allowed[part], rel=0.02)
