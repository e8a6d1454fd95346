"""The application: its commands by module, and what becomes of an error."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import logging
import os
import traceback
from collections.abc import Iterator
from typing import Annotated

import typer

import codi_hub
from codi_hub.cli import streams
from codi_hub.cli.output import Output
from codi_hub.errors import AlreadyReported, CodiError, UsageError, describe, one_line, system_reason
from codi_hub.interrupts import EXIT_CODE

# The commands of each module, in the order of the help. Only the module of the command is imported, so that `codi list`
# does not wait for the options of `codi distill`; the help, or an unknown command, imports all of them.
COMMANDS = {
    "adapters": ("list", "ls", "show", "tag", "cp", "rm"),
    "run": ("run",),
    "distill": ("distill",),
    "eval": ("eval",),
    "import_": ("import",),
    "export": ("export",),
    "share": ("install", "push", "pull"),
    "health": ("verify", "gc", "recover", "doctor"),
    "task": ("task",),
    "base": ("base",),
    "runs": ("runs",),
    "serve": ("serve",),
}
MAY_BE_EMPTY = ("--prompt", "--suffix")
LOOKUPS = {name for module in ("adapters", "health", "task", "base", "runs") for name in COMMANDS[module]}


def app(command: str | None = None) -> typer.Typer:
    """Return the application; of a known command, with that command's module alone."""
    application = typer.Typer(
        name="codi",
        help="Few-step conditional image models: adapters on one frozen base, registered, distilled and run.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    application.callback()(_root)
    for module in [module for module, commands in COMMANDS.items() if command in commands] or COMMANDS:
        importlib.import_module(f"codi_hub.cli.{module}").register(application)
    return application


def _version(requested: bool) -> None:
    if requested:
        print(f"codi-hub {codi_hub.__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version")
    ] = False,
) -> None: ...


REMARKS = (
    *("bitsandbytes", "diffusers.quantizers", "torch.utils._pytree", "torchao"),
    "transformers.tokenization_utils_base",
)
"""Loggers that remark on parts of packages for fewer bits that this machine has no use for, and on prompts that are
longer than a text encoder reads, of which a line of our own says what is lost."""


def run(args: list[str]) -> int:
    """Run a command; return its exit code."""
    atexit.register(gc.freeze)  # the collection at exit would take a tenth of `codi list`
    for name in REMARKS:
        logging.getLogger(name).setLevel(logging.ERROR)
    Output.printed = False
    code = _run(args)
    if error := streams.flush():
        if not isinstance(error, BrokenPipeError):  # nobody reads a message then
            streams.message(f"Error: stdout cannot be written: {error.strerror}")
        return code or 1
    return code


def _run(args: list[str]) -> int:
    command = args[0] if args else _completed_command()
    try:
        _check_empty(args)
        with _no_collector() if command in LOOKUPS else contextlib.nullcontext():
            code = app(command)(args=args, prog_name="codi", standalone_mode=False)
    except BrokenPipeError:  # the reader has closed the pipe
        streams.drop()
        return 1
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted(args)
    except Exception as error:  # noqa: BLE001  the edge where every error becomes one line
        return _report(error, args)
    return _interrupted(args) if code == EXIT_CODE else code or 0


def _completed_command() -> str | None:
    """Return the command whose arguments a shell asks to complete, if any."""
    words = (os.environ.get("_TYPER_COMPLETE_ARGS") or os.environ.get("COMP_WORDS", "")).split()
    return words[1] if "_CODI_COMPLETE" in os.environ and words[2:] else None


def _check_empty(args: list[str]) -> None:
    """Refuse an empty argument, such as an unset variable in a script: as a path it would be the working directory."""
    for before, arg in zip(["codi", *args], args, strict=False):
        if not arg and before not in MAY_BE_EMPTY:
            raise UsageError(f"the argument after {one_line(before, 60)} is empty: give a value or leave it out")


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    """Disable garbage collection: it takes a sixth of the time of the imports, and a lookup has little garbage."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _interrupted(args: list[str]) -> int:
    streams.message("Interrupted.")
    _answer(args, "Interrupted", "interrupted", EXIT_CODE)
    return EXIT_CODE


def _report(error: Exception, args: list[str]) -> int:
    """Print `Error: ...`, one line on stderr; return the exit code."""
    if os.environ.get("CODI_DEBUG"):
        with contextlib.suppress(OSError):
            traceback.print_exception(error)
    if type(error).__name__ == "NoArgsIsHelpError":
        streams.message(str(error))
        return 2
    code = error.exit_code if isinstance(error, CodiError | typer.TyperException) else 1
    if not isinstance(error, AlreadyReported):
        text = one_line(_text(error))
        streams.message(f"Error: {text}")
        _answer(args, type(error).__name__, text, code)
    return code


def _answer(args: list[str], kind: str, text: str, code: int) -> None:
    """Print the error as the JSON document of a command that has printed none, where JSON was asked for."""
    options = args[: args.index("--")] if "--" in args else args
    if "--json" in options and not Output.printed:
        with contextlib.suppress(OSError):
            Output(json=True).result({"error": {"type": kind, "message": text, "exit_code": code}}, "")


def _text(error: Exception) -> str:
    if isinstance(error, CodiError):
        return str(error)
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        hint = f"; see `{context.command_path} --help`" if context else ""
        return error.format_message().rstrip(".") + hint
    if reason := system_reason(error):
        file = getattr(error, "filename", None)
        return f"{reason}: {file}" if file else reason
    return f"unexpected {describe(error)} (run again with CODI_DEBUG=1 for the traceback)"
