"""What happens while a long command runs, on stderr: a live bar on a terminal, a line now and then elsewhere.

Events are dictionaries told apart by `kind`:
    step     step, total (None: until the time is up), losses {name: value}, images_per_s, eta (seconds)
    item     input, output, status, seed, error, and done, total
    message  text
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

from codi_hub.cli.output import Output, cell
from codi_hub.errors import printable
from codi_hub.events import Event, Message, TrainingStep

if TYPE_CHECKING:
    from rich.progress import Progress

PLAIN_EVERY = 10.0  # seconds between lines where there is no terminal


class Display:
    """An `on_event` for the Hub. Failed items are said even when quiet, since they are errors."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._live: Progress | None = None
        self._said = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, event: Any) -> None:
        if not isinstance(event, dict):
            event = _as_mapping(event)
        kind = event["kind"]
        if kind == "message":
            self._say(event["text"])
        elif kind == "item" and event["status"] == "failed":
            self._say(f"failed: {printable(event['input'])}: {event['error']}", always=True)
        if kind == "step":
            self._advance("step", event["step"], event["total"], _training(event), event.get("eta"))
        elif kind == "item" and "total" in event:
            self._advance("image", event["done"], event["total"], printable(event["input"]), event.get("eta"))

    def _say(self, text: str, always: bool = False) -> None:
        if self._live:
            self._live.console.print(text, markup=False, highlight=False)
        elif always or not self._out.quiet:
            print(text, file=sys.stderr)

    def _advance(self, unit: str, done: int, total: int | None, text: str, eta: float | None) -> None:
        if self._out.quiet:
            return
        text = f"{text}  {_clock(eta)} left" if eta is not None else text
        if not sys.stderr.isatty():
            if done == total or time.monotonic() - self._said >= PLAIN_EVERY:
                self._said = time.monotonic()
                self._say(f"{unit} {done}{f'/{total}' if total else ''}  {text}")
            return
        if self._live is None:
            self._live = _bar()
            self._live.add_task(unit, total=total, text="")
            self._live.start()
        self._live.update(self._live.task_ids[0], completed=done, total=total, text=text)


def _as_mapping(event: Event) -> dict[str, Any]:
    if isinstance(event, Message):
        return {"kind": "message", "text": event.text}
    assert isinstance(event, TrainingStep)
    return {"kind": "step", **asdict(event)}


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, TextColumn("{task.fields[text]}", markup=False), console=Console(stderr=True))


def _training(event: dict[str, Any]) -> str:
    losses = "  ".join(f"{name} {cell(float(value))}" for name, value in event.get("losses", {}).items())
    rate = event.get("images_per_s")
    return f"{losses}  {rate:.1f} images/s" if rate else losses


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
