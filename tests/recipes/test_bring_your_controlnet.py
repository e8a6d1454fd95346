"""The recipe that brings a ControlNet: its ratios and its table."""

from typing import Any

from recipes.bring_your_controlnet import FEW, METHODS, STEPS, ratios, table


def run(few: float, many: float) -> dict[str, Any]:
    """The figures of one seed: of the ControlNet at 4 and 50 steps; its few-step versions are at 4 as it is at 50."""
    own = {str(steps): {"frechet": few if steps <= FEW else many, "perceptual": 1.0} for steps in STEPS}
    students = {str(steps): {"frechet": many, "perceptual": 2.0} for steps in STEPS[:-1]}
    return {"figures": {"as it came": own} | dict.fromkeys(METHODS, students)}


def test_ratios_are_to_the_controlnets_own_50_steps() -> None:
    found = ratios([run(3.0, 1.0), run(4.0, 2.0)])
    assert found["as it came"] == {"frechet": [3.0, 2.0], "perceptual": [1.0, 1.0]}
    assert found["pe-codi"] == {"frechet": [1.0, 1.0], "perceptual": [2.0, 2.0]}


def test_the_table_has_means_and_ranges() -> None:
    lines = table([run(3.0, 1.0), run(4.0, 2.0)]).splitlines()
    assert len(lines) == 2 + 2 * (1 + len(METHODS))
    assert lines[2] == "| as it came | frechet | 3.5 | 3.5 | 3.5 | 1.5 | 1.5 | 2.50 (2.00-3.00) |"
    assert lines[4] == "| pe-codi | frechet | 1.5 | 1.5 | 1.5 | 1.5 | - | 1.00 (1.00-1.00) |"
