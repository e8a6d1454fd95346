"""Progress of a long command on stderr: a live bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Self

from codi_hub.cli import streams
from codi_hub.cli.output import Output, cell
from codi_hub.errors import printable
from codi_hub.events import EvaluationStep, Event, ItemDone, Message, TrainingStep

if TYPE_CHECKING:
    from rich.progress import Progress

LINE_INTERVAL = 10.0  # seconds between lines without a terminal


class Display:
    """An `OnEvent` for the Hub. Failed items are printed even when quiet, since they are errors."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._live: Progress | None = None
        self._printed = 0.0  # time of the last line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            with contextlib.suppress(OSError):
                self._live.stop()

    def __call__(self, event: Event) -> None:
        with contextlib.suppress(OSError):  # a terminal that was closed ends no run
            self._show(event)

    def _show(self, event: Event) -> None:
        match event:
            case Message(text):
                self._print(text)
            case TrainingStep():
                self._advance("step", event.step, event.total, _training_text(event))
            case ItemDone(row, done, total):
                if row["status"] == "failed":
                    self._print(f"failed: {printable(row['input'])}: {row['error']}", always=True)
                self._advance("image", done, total, printable(row["input"]))
            case EvaluationStep(done, total):
                self._advance("measured", done, total, "")

    def _print(self, text: str, always: bool = False) -> None:
        if self._live:
            self._live.console.print(text, markup=False, highlight=False)
        elif always or not self._out.quiet:
            streams.message(text)

    def _advance(self, unit: str, done: int, total: int | None, text: str) -> None:
        if self._out.quiet:
            return
        if not sys.stderr.isatty():
            if done == total or time.monotonic() - self._printed >= LINE_INTERVAL:
                self._printed = time.monotonic()
                self._print(f"{unit} {done}{f'/{total}' if total else ''}  {text}".rstrip())
            return
        if self._live is None:
            self._live = _bar()
            self._live.add_task(unit, total=total, text="")
            self._live.start()
        self._live.update(self._live.task_ids[0], completed=done, total=total, text=text)


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, TextColumn("{task.fields[text]}", markup=False), console=Console(stderr=True))


def _training_text(event: TrainingStep) -> str:
    parts = [f"{name} {cell(float(value))}" for name, value in event.losses.items()]
    return "  ".join([*parts, f"{event.images_per_s:.1f} images/s", f"{_clock(event.eta)} left"])


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
