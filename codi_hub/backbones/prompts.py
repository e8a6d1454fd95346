"""Prompts that are longer than what a text encoder reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from codi_hub.backbones.sources import quiet_libraries
from codi_hub.errors import one_line

if TYPE_CHECKING:
    from codi_hub.backbones.backbone import Backbone

SHOWN = 60  # characters of a prompt in a message
# Of other tools: (red:1.3), ((red)), [red:blue:0.5], <lora:name:1>, a BREAK between parts.
WEIGHTS = re.compile(r"\([^()]*:\s*-?\d*\.?\d+\s*\)|\(\([^()]*\)\)|\[[^\[\]]*:[\d.]+\]|<lora:[^<>]*>|\bBREAK\b")


def excess(tokenizer: Any, text: str, limit: int) -> str:
    """Return the end of a text that a tokenizer cuts off after `limit` tokens, "" if there is none."""
    with quiet_libraries():
        ids = tokenizer(text, truncation=False).input_ids
    return tokenizer.decode(ids[limit - 1 : -1]).strip() if len(ids) > limit else ""


class PromptWarnings:
    """Says once per prompt that a base reads only its beginning, or that it contains weights, which are not read.

    Args:
        base: whose text encoders read the prompts.
        on_message: takes lines for people.
        most: prompts that are named; then one line says that there are more.
    """

    def __init__(self, base: Backbone, on_message: Callable[[str], object], most: int | None = None) -> None:
        self._base, self._on_message, self._most = base, on_message, most
        self._checked: set[str] = set()
        self._named = 0

    def check(self, prompts: Iterable[str | None]) -> None:
        """Warn of the prompts that were not checked before."""
        for prompt in dict.fromkeys(prompts):
            if not prompt or prompt in self._checked or (self._most is not None and self._named > self._most):
                continue
            self._checked.add(prompt)
            shown = f"prompt {one_line(prompt, SHOWN)!r}"
            if found := WEIGHTS.search(prompt):
                self._say(f"{shown}: {one_line(found[0], SHOWN)!r} is read as words: prompts have no weights here")
            if rest := self._base.unread_text(prompt):
                self._say(f"{shown} is too long for the text encoder: it does not read {one_line(rest, SHOWN)!r}")

    def _say(self, text: str) -> None:
        self._named += 1
        more = self._most is not None and self._named > self._most
        if not more:
            self._on_message(text)
        elif self._named == (self._most or 0) + 1:
            self._on_message("more prompts are too long or contain weights")
