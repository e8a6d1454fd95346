"""Ctrl-C, and the signals that end a program like it: SIGTERM (of schedulers and containers), SIGHUP (of a terminal).

A library leaves signals to its caller. The command line lets all of them raise KeyboardInterrupt (`install`); what must
not be cut off waits with `first_interrupt` or `delayed_interrupts`, which treat all of them alike.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
EXIT_CODE = 130


def install() -> None:
    """Let every signal raise KeyboardInterrupt; one that is ignored, as SIGHUP under nohup, stays ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _raise)
    sys.unraisablehook = functools.partial(_repeat, sys.unraisablehook)


def finish(code: int) -> None:
    """Let every signal end the process with the exit code that it has: nothing is left but the interpreter's exit."""
    for number in SIGNALS:
        if signal.getsignal(number) is _raise:
            signal.signal(number, lambda *_: os._exit(code))


def _raise(signum: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; end at once while a module is imported, where libraries would swallow the exception."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            os.write(2, b"Interrupted.\n")
            os._exit(EXIT_CODE)
        frame = frame.f_back
    raise KeyboardInterrupt(signum)


def _repeat(usual: Callable[[UnraisableHookArgs], object], unraisable: UnraisableHookArgs) -> None:
    """Send a signal again that came during a finaliser or the like, where Python drops what `_raise` raises."""
    error = unraisable.exc_value
    if isinstance(error, KeyboardInterrupt) and error.args:
        later = threading.Timer(0.01, os.kill, (os.getpid(), error.args[0]))  # not now: it would be dropped again
        later.daemon = True
        later.start()
    else:
        usual(unraisable)


@contextlib.contextmanager
def first_interrupt(stop: threading.Event) -> Iterator[None]:
    """Set `stop` at the first signal, so that nothing is cut off; the second one interrupts as usual.

    Signals with a handler of the caller's own are left alone, as are all of them outside the main thread.
    """
    in_main = threading.current_thread() is threading.main_thread()
    usual = (signal.default_int_handler, _raise)
    before = {number: handler for number in SIGNALS if in_main and (handler := signal.getsignal(number)) in usual}

    def first(signum: int, frame: object) -> None:
        stop.set()
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, first)
    try:
        yield
    finally:
        restore()


@contextlib.contextmanager
def delayed_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt for a signal when the block has ended; a second signal is not delayed."""
    stop = threading.Event()
    try:
        with first_interrupt(stop):
            yield
    finally:
        if stop.is_set():
            raise KeyboardInterrupt


@contextlib.contextmanager
def ignored() -> Iterator[None]:
    """Ignore all signals, and let processes that start meanwhile ignore them: this process ends those."""
    if threading.current_thread() is not threading.main_thread():  # only that one can set a handler
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
