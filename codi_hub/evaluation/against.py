"""The contestants of an evaluation: an adapter, and what the option `against` names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from codi_hub.errors import UsageError

if TYPE_CHECKING:
    from codi_hub.registry import AdapterRow

BASE = "base"


@dataclass(frozen=True)
class Entrant:
    """An adapter, or with None the base alone, at numbers of steps."""

    row: AdapterRow | None
    steps: tuple[int, ...]

    @property
    def name(self) -> str:
        """Return the reference of the adapter, or "base"."""
        return self.row.ref if self.row else BASE


def entrants(
    names: Sequence[str],
    row: AdapterRow,
    baselines: Sequence[str],
    steps: tuple[int, ...],
    *,
    resolve: Callable[[str], AdapterRow],
    available: Callable[[], Sequence[AdapterRow]],
) -> list[Entrant]:
    """Return the evaluated adapter, then what `names` asks for; each once, with all numbers of steps.

    Args:
        names: "bicubic", "base", "depth:2", and the last two with steps of their own as "depth:2@50".
        row: the evaluated adapter.
        baselines: rows that every table of its task has; naming one changes nothing.
        steps: numbers of steps of `row`, and of a name without its own.
        resolve: finds an adapter on the same base. Raises NotFound.
        available: adapters that could be named, for the error message.

    Raises:
        UsageError: a name without a meaning for this task.
        NotFound: no such version.
    """
    contestants = {row.ref: Entrant(row, steps)}
    for text in names:
        name, at, own = text.partition("@")
        if at and not (own.isascii() and own.isdigit() and int(own) > 0):
            raise UsageError(f"against {text}: after @ comes a number of steps of at least 1, such as {row.ref}@50")
        if name in baselines and not at:
            continue
        if name != BASE and name.partition(":")[0] != row.task:
            possible = [*baselines, BASE, *(other.ref for other in available())]
            raise UsageError(
                f"against {text}: cannot be compared with {row.ref}; use one of {', '.join(possible)}, "
                f"with steps of their own as {row.ref}@50"
            )
        new = Entrant(None if name == BASE else resolve(name), (int(own),) if at else steps)
        before = contestants[new.name].steps if new.name in contestants else ()
        contestants[new.name] = Entrant(new.row, tuple(dict.fromkeys((*before, *new.steps))))
    return list(contestants.values())
