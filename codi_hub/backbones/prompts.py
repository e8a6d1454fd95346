"""Prompts that are longer than what a text encoder reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from codi_hub.backbones.sources import quiet_libraries
from codi_hub.errors import one_line

if TYPE_CHECKING:
    from codi_hub.backbones.backbone import Backbone

SHOWN = 60  # characters of a prompt in a message


def excess(tokenizer: Any, text: str, limit: int) -> str:
    """Return the end of a text that a tokenizer cuts off after `limit` tokens, "" if there is none."""
    with quiet_libraries():
        ids = tokenizer(text, truncation=False).input_ids
    return tokenizer.decode(ids[limit - 1 : -1]).strip() if len(ids) > limit else ""


class PromptWarnings:
    """Says once per prompt that a base reads only its beginning.

    Args:
        base: whose text encoders read the prompts.
        on_message: takes lines for people.
        most: prompts that are named; then one line says that there are more.
    """

    def __init__(self, base: Backbone, on_message: Callable[[str], object], most: int | None = None) -> None:
        self._base, self._on_message, self._most = base, on_message, most
        self._checked: set[str] = set()
        self._cut = 0

    def check(self, prompts: Iterable[str | None]) -> None:
        """Warn of the prompts that were not checked before."""
        for prompt in dict.fromkeys(prompts):
            if not prompt or prompt in self._checked or (self._most is not None and self._cut > self._most):
                continue
            self._checked.add(prompt)
            if rest := self._base.unread_text(prompt):
                self._cut += 1
                more = self._most is not None and self._cut > self._most
                shown = f"prompt {one_line(prompt, SHOWN)!r} is too long for the text encoder: it does not read "
                self._on_message("more prompts are too long" if more else f"{shown}{one_line(rest, SHOWN)!r}")
