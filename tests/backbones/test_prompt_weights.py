"""Prompts in the weight syntax of other tools get a notice; ordinary brackets do not."""

import pytest

from codi_hub.backbones.prompts import PromptWarnings


class Base:
    def unread_text(self, prompt: str) -> str:
        return ""


def said(*prompts: str, most: int | None = None) -> list[str]:
    lines: list[str] = []
    PromptWarnings(Base(), lines.append, most).check(prompts)  # type: ignore[arg-type]
    return lines


@pytest.mark.parametrize("part", ["(red:1.3)", "((red))", "[red:blue:0.5]", "<lora:ink:0.8>", "BREAK", "(a b: .5)"])
def test_weights_are_named(part):
    assert said(f"a {part} ball") == [
        f"prompt 'a {part} ball': {part!r} is read as words: prompts have no weights here"
    ]


@pytest.mark.parametrize("prompt", ["a ball (red)", "at 10:30", "a breakfast", "[sic] a note: 3 balls", ""])
def test_ordinary_text_is_not(prompt):
    assert said(prompt) == []


def test_many_are_counted_once():
    lines = said(*(f"(red:1.{k})" for k in range(6)), most=2)
    assert len(lines) == 3
    assert lines[-1] == "more prompts are too long or contain weights"
