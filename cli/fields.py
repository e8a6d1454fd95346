"""Command-line options generated from an options dataclass of `codi_hub.config`."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, get_args, get_type_hints

import typer

from codi_hub.cli.common import parse_set, task_flags

Command = Callable[..., None]


def options_from(dataclass: type) -> Callable[[Command], Command]:
    """Gives a command one option per field of `dataclass`; it gets those that were typed as the dictionary `given`."""

    def decorate(command: Command) -> Command:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "given"]
        flags = task_flags()
        made = list(_parameters(dataclass, flags))

        @functools.wraps(command)
        def with_options(**values: Any) -> None:
            typed = {p.name: values.pop(p.name) for p in made}
            given = {name: value for name, value in typed.items() if value is not None}
            command(**values, given=_fold_settings(dataclass, given, list(flags)))

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in [*own, *made]]
        with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_options.__annotations__ = {p.name: p.annotation for p in parameters}
        return with_options

    return decorate


def _settings_field(dataclass: type) -> str:
    return next(f.name for f in fields(dataclass) if f.default_factory is dict)


def _fold_settings(dataclass: type, given: dict[str, Any], flags: list[str]) -> dict[str, Any]:
    """--set and the task options that have flags of their own become one dictionary."""
    settings = parse_set(given.pop("set_", None), **{name: given.pop(name, None) for name in flags})
    return {**given, _settings_field(dataclass): settings} if settings else given


def _parameters(dataclass: type, flags: dict[str, Any]) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(dataclass)
    for f in fields(dataclass):
        name = "set_" if f.default_factory is dict else f.name
        option = Annotated[_typed_as(f, hints[f.name]) | None, _option(f)]  # type: ignore[valid-type]
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
    for name, annotation in flags.items():
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _typed_as(f: Field[Any], hint: Any) -> Any:
    """What Typer parses: text for a field with a metavar, else the field's type without its None."""
    if f.default_factory is dict:
        return list[str]
    if f.metadata["metavar"]:
        return str
    return get_args(hint)[0] if isinstance(hint, types.UnionType) else hint


def _option(f: Field[Any]) -> Any:
    meta = f.metadata
    return typer.Option(
        *meta["flags"],
        metavar="|".join(meta["choices"]) or meta["metavar"],
        help=meta["help"] + _default(f),
        rich_help_panel=meta["panel"] or "Options",
        show_default=False,
    )


def _default(f: Field[Any]) -> str:
    if f.default is None or f.default is MISSING or f.default == "" or "(default" in f.metadata["help"]:
        return ""
    if isinstance(f.default, bool):
        return " (on by default)" if f.default else ""
    text = ",".join(map(str, f.default)) if isinstance(f.default, tuple) else f.default
    return f" (default: {text})"
