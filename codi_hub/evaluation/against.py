"""What stands beside an adapter in its table: `--against bicubic`, `base`, or other adapters of the task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from codi_hub.adapters.adapter import FromNoise
from codi_hub.backbones.backbone import Backbone as FrozenBase
from codi_hub.errors import UsageError

if TYPE_CHECKING:
    from codi_hub.registry import AdapterRow

BASE = "base"
ALWAYS = {
    "superres": ("bicubic",),
    "inpaint": ("smooth fill",),
}  # rows that every table of these tasks has, because they cost nothing


class PromptOnly(FromNoise):
    """The base without an adapter, behind an adapter's calls: it sees the prompt, and no condition."""

    def prepare(self, condition: Tensor, prompt: Tensor | None = None) -> Tensor:
        return condition

    def predict(self, base: FrozenBase, z_t: Tensor, t: Tensor, prompt: Tensor, prepared: Tensor) -> Tensor:
        """What the base's network predicts at z_t."""
        emb, features = base.features(z_t, t, prompt)
        return base.finish(emb, features, prompt)


@dataclass(frozen=True)
class Entrant:
    """An adapter, or with None the base alone, at numbers of steps."""

    row: AdapterRow | None
    steps: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.row.ref if self.row else BASE


def entrants(
    names: Sequence[str],
    row: AdapterRow,
    like: str,
    steps: tuple[int, ...],
    *,
    resolve: Callable[[str], AdapterRow],
    there: Callable[[], Sequence[AdapterRow]],
) -> list[Entrant]:
    """The adapter that is measured, then what `--against` names; each once, with all the steps it is named with.

    Args:
        names: "bicubic", "base", "depth:2", and the last two with steps of their own as "depth:2@50".
        row: the adapter that is measured.
        like: the kind of its task.
        steps: its numbers of steps, and those of whatever has none of its own.
        resolve: a reference to an adapter on the same base. Raises NotFound.
        there: the adapters that could be named, for a message.

    Raises:
        UsageError: a name that means nothing for this task. NotFound: no such version.
    """
    found = {row.ref: Entrant(row, steps)}
    for text in names:
        name, at, own = text.partition("@")
        if at and not (own.isascii() and own.isdigit() and int(own) > 0):
            raise UsageError(f"--against {text}: after @ comes a number of steps from 1 up, as {row.ref}@50")
        if name in ALWAYS.get(like, ()) and not at:
            continue
        if name != BASE and name.partition(":")[0] != row.task:
            possible = [*ALWAYS.get(like, ()), BASE, *(other.ref for other in there())]
            raise UsageError(
                f"--against {text}: not something {row.ref} can be held against; possible are {', '.join(possible)}, "
                f"and steps of their own as {row.ref}@50"
            )
        new = Entrant(None if name == BASE else resolve(name), (int(own),) if at else steps)
        before = found[new.name].steps if new.name in found else ()
        found[new.name] = Entrant(new.row, tuple(dict.fromkeys((*before, *new.steps))))
    return list(found.values())
