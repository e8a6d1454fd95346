"""The recipe that measures whether a few-step base stays few-step: its error, its pairs, its table."""

import pytest
import torch

from recipes.fast_base import STEPS, Budget, energy_distance, measure, pairs, table


def test_the_energy_distance_sees_blur_and_a_wrong_condition() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn((2, 400, 4), generator=generator)
    assert abs(energy_distance(a, b)) < 0.05
    assert energy_distance(a, b * 0.5) > 0.1
    condition = a[:, :2]
    right, wrong = torch.cat([a, condition], dim=1), torch.cat([a, condition.flip(0)], dim=1)
    assert energy_distance(right[:200], right[200:]) < energy_distance(right[:200], wrong[200:])


def test_the_condition_determines_the_latents() -> None:
    held_out, again, other = pairs(4, 3), pairs(4, 3), pairs(4, 2)
    assert torch.equal(held_out.x, again.x)
    assert not torch.equal(held_out.x, other.x)
    assert torch.equal(pairs(4, 3, gray=True).x, held_out.x)
    assert torch.equal(*pairs(4, 3, gray=True).conditions[:, :2].unbind(1))
    small = torch.nn.functional.avg_pool2d(held_out.conditions.float() / 255, 2)
    assert torch.allclose(torch.nn.functional.pixel_shuffle(held_out.x.float(), 2), 4 * (small - 0.5), atol=1e-2)


@pytest.mark.slow
def test_a_short_run_fills_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.fast_base.HELD_OUT", 4)
    rows = measure(Budget(base=1, phase=1, adapter=1))
    assert len(rows) == 5
    assert all(set(found) == set(STEPS) for found in rows.values())
    assert len(table(rows).splitlines()) == 2 + 2 * len(rows)
