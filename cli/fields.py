"""Command-line options generated from the options of `codi_hub.config`, and errors that name the flags."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

import typer

from codi_hub.cli.common import parse_set, presented, task_flags
from codi_hub.cli.completion import bases, references, tasks
from codi_hub.config.layers import LayerError, nested
from codi_hub.config.model import Declared, Options, declared
from codi_hub.errors import Mismatch, UsageError

Command = Callable[..., None]
COMPLETED = {"base": bases, "parent": references, "task": tasks}  # field -> what a shell completes


def options_from(model: type[Options], with_task_flags: bool = True) -> Callable[[Command], Command]:
    """Give a command one option per field of `model` that has a flag.

    The command receives those that were typed as the nested mapping `given`. An error that begins with a field's path,
    or mentions a dotted one, names the flag instead.

    Args:
        with_task_flags: whether the task options with a flag of their own, such as --scale, are among them.
    """
    fields = [one for one in declared(model) if one.flag]
    flags = task_flags() if with_task_flags else {}

    def decorate(command: Command) -> Command:
        def with_options(**values: Any) -> None:
            typed = {one.path: values.pop(_identifier(one)) for one in fields}
            named = {name: values.pop(name) for name in flags}
            with FlagNames(model):
                command(**values, given=_given(fields, typed, named))

        return presented(with_options, command, "given", {_identifier(one): _option(one) for one in fields} | flags)

    return decorate


class FlagNames:
    """A context in which an error about a field of `model` names the flag that was typed."""

    def __init__(self, model: type[Options]) -> None:
        self.flags = {one.path: one.flag for one in declared(model) if one.flag and not one.is_mapping}

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if (
            isinstance(error, UsageError | Mismatch)
            and not isinstance(error, LayerError)
            and (text := self.translated(str(error))) != str(error)
        ):
            raise type(error)(text) from error

    def translated(self, text: str) -> str:
        """Return a message with flags in place of field paths."""
        for path, flag in self.flags.items():
            end = r"(?=[\s:,;)]|$)"
            anywhere = rf"(?<![\w.=]){re.escape(path)}{end}" if {".", "_"} & set(path) else rf"^{re.escape(path)}{end}"
            text = re.sub(anywhere, flag, text)
        return text


def _given(fields: list[Declared], typed: dict[str, Any], named: dict[str, Any]) -> dict[str, Any]:
    """Return what was typed as a nested mapping; --set and the flags of task options are one mapping in it."""
    given = {path: value for path, value in typed.items() if value is not None}
    for one in fields:
        if one.is_mapping and (settings := parse_set(given.pop(one.path, None), **named)):
            given[one.path] = settings
    return nested(given)


def _identifier(one: Declared) -> str:
    return "field_" + one.path.replace(".", "_")


def _option(one: Declared) -> Any:
    option = typer.Option(
        *one.flags,
        autocompletion=COMPLETED.get(one.path.rpartition(".")[2]),
        metavar=one.placeholder,
        help=one.help + _default(one),
        rich_help_panel=one.panel,
        show_default=False,
    )
    return Annotated[one.type | None, option]


def _default(one: Declared) -> str:
    default = one.field.default
    if not one.field.is_required() and one.field.default_factory is None and "(default" not in one.help:
        if isinstance(default, bool):
            return " (on by default)" if default else ""
        if default is not None and default != "" and default != ():
            return f" (default: {','.join(map(str, default)) if isinstance(default, tuple) else default})"
    return ""
