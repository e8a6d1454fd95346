"""The table of goals: its figures, and the page around it."""

import pytest

from recipes.goals import CARDS, PAGE, PARTS, TITLE, Goal, insert, section


def test_a_goal_is_met_or_not() -> None:
    assert Goal("a", 0.7, "<= 0.8").holds == "yes"
    assert Goal("a", 0.9, "<= 0.8").holds == "**no**"
    assert Goal("a", 1.0, ">= 1").holds == "yes"
    assert Goal("a", 1.0, "< 1").holds == "**no**"
    assert Goal("a", 1.0).holds == ""


def test_the_section_is_inserted_once_and_replaced() -> None:
    figures = {
        "base": "abc",
        "date": "2026-01-01",
        "parts": {"speed": [{"text": "quick", "figure": 1.234, "needed": "< 2"}]},
    }
    page = insert("# Page\n\nHead.\n\n## Other\n\nText.\n", section(figures))
    assert page.startswith("# Page\n\nHead.\n\n" + TITLE)
    assert "| quick | 1.23 | < 2 | yes |" in page
    assert page.endswith("\n\n## Other\n\nText.\n")
    figures["parts"]["speed"][0]["figure"] = 3.0
    again = insert(page, section(figures))
    assert "| quick | 3 | < 2 | **no** |" in again
    assert again.count(TITLE) == again.count("## Other") == 1
    assert insert(again, section(figures)) == again


def test_the_real_page_keeps_its_sections() -> None:
    page = PAGE.read_text()
    text = section({"base": "abc", "date": "2026-01-01", "parts": {}})
    changed = insert(page, text)
    assert text in changed
    assert [line for line in changed.splitlines() if line.startswith("## ") and line != TITLE] == [
        line for line in page.splitlines() if line.startswith("## ") and line != TITLE
    ]


@pytest.mark.parametrize(
    ("card", "told"),
    [("# A\n\n## Use\n\n## Limits\n\nFew.\n", "# A\n\n## Use\n\n{}\n## Limits\n\nFew.\n"), ("# B\n", "# B\n\n{}\n")],
    ids=["of an adapter", "of the base"],
)
def test_a_card_has_its_own_parts_before_its_limits(card: str, told: str) -> None:
    parts = {name: [{"text": name, "figure": 1.0, "needed": ""}] for name in ("edit", "depth")}
    text = section({"base": "abc", "date": "2026-01-01", "parts": parts}, ["depth"])
    assert "| depth | 1 |  |  |" in text
    assert "| edit |" not in text
    found = insert(card, text, before="## Limits")
    assert found == told.format(text)
    assert insert(found, text, before="## Limits") == found


def test_every_part_is_in_one_card() -> None:
    assert sorted(part for parts in CARDS.values() for part in parts) == sorted(PARTS)
