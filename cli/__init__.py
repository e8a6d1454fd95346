"""The `codi` command. Each module has one group of commands: it parses, makes one library call, and prints."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Annotated, NoReturn

import typer

import codi_hub
from codi_hub.errors import AlreadyReported, CodiError, UsageError, one_line

# The commands of each module, in the order of the help. Only the module of the command is imported, so that `codi list`
# does not wait for the options of `codi distill`; the help, or an unknown command, imports all of them.
COMMANDS = {
    "adapters": ("list", "ls", "show", "tag", "cp", "rm"),
    "run": ("run",),
    "distill": ("distill",),
    "eval": ("eval",),
    "export": ("export",),
    "health": ("verify", "gc", "doctor"),
    "task": ("task",),
    "base": ("base",),
    "runs": ("runs",),
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


def main(args: list[str] | None = None) -> NoReturn:
    """Run the console script; exit with 0, 1 (something failed), 2 (wrong usage) or 130 (Ctrl-C)."""
    atexit.register(gc.freeze)  # the collection at exit would take a tenth of `codi list`
    sys.exit(_run(sys.argv[1:] if args is None else args))


def _run(args: list[str]) -> int:
    command = args[0] if args else None
    try:
        _check_empty(args)
        with _no_collector() if command in LOOKUPS else contextlib.nullcontext():
            code = app(command)(args=args, prog_name="codi", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has closed the pipe: nobody reads a message
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except Exception as error:  # noqa: BLE001  the edge where every error becomes one line
        return _report(error)
    return _interrupted() if code == 130 else code or 0


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


def _interrupted() -> int:
    print("Interrupted.", file=sys.stderr)
    return 130


def _report(error: Exception) -> int:
    """Print `Error: ...`, one line on stderr; return the exit code."""
    if os.environ.get("CODI_DEBUG"):
        traceback.print_exception(error)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error, file=sys.stderr)
        return 2
    if not isinstance(error, AlreadyReported):
        print(f"Error: {one_line(_text(error))}", file=sys.stderr)
    return error.exit_code if isinstance(error, CodiError | typer.TyperException) else 1


def _text(error: Exception) -> str:
    if isinstance(error, CodiError):
        return str(error)
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        hint = f"; see `{context.command_path} --help`" if context else ""
        return error.format_message().rstrip(".") + hint
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return f"unexpected {type(error).__name__}: {error} (run again with CODI_DEBUG=1 for the traceback)"
