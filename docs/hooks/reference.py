"""MkDocs hook: write the reference pages from the code, and fill in the generated tables of other pages.

`mkdocs.yml` names this file. The pages are functions of the code alone, so that tests can call them without MkDocs.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping
from typing import Any

import typer
from pydantic import BaseModel

import codi_hub
import codi_hub.cli.application

# Classes and modules that packages outside this one build on, beside the public names of `codi_hub`.
EXTENSION_API = (
    "codi_hub.tasks.Task",
    "codi_hub.tasks.Pair",
    "codi_hub.tasks.Prepared",
    "codi_hub.adapters.adapter.Adapter",
    "codi_hub.adapters.adapter.AdapterConfig",
    "codi_hub.losses.method.Method",
    "codi_hub.losses.method.StepContext",
    "codi_hub.evaluation.metrics",
    "codi_hub.backbones.backbone.Backbone",
    "codi_hub.backbones.values.LatentSpec",
    "codi_hub.backbones.values.Residuals",
    "codi_hub.diffusion.schedule.Schedule",
    "codi_hub.inference.engine.Engine",
    "codi_hub.inference.engine.Request",
    "codi_hub.inference.engine.Sampling",
    "codi_hub.plugins.Plugins",
    "codi_hub.events",
    "codi_hub.seeds",
)
MARKER = re.compile(r"^<!-- (?P<what>options|kinds|methods|plugins)(?:: (?P<name>[\w.]+))? -->$", re.MULTILINE)


# ---- the command line


def commands(app: typer.Typer) -> Iterator[tuple[str, Any]]:
    """Yield (full name, command) of every command that is not a group, such as ("codi task add", ...)."""
    yield from _walk("codi", typer.main.get_command(app))


def _walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield name, command
        return
    for child, sub in children.items():
        if not sub.hidden:
            yield from _walk(f"{name} {child}", sub)


def cli_page(app: typer.Typer) -> str:
    """Return the Markdown page of every command with every argument and option."""
    parts = [
        "# Command line",
        "This page is generated from the program. Results go to stdout, messages to stderr. Exit codes: 0 success, "
        "1 something failed, 2 wrong usage, 130 interrupted (Ctrl-C, SIGTERM, SIGHUP). An error is one line, `Error: "
        "what, the value, the remedy`; `CODI_DEBUG=1` adds the traceback, and with `--json` stdout has it as "
        '`{"error": {"type", "message", "exit_code"}}`. `CODI_HOME` is the folder of the registry and its files.',
    ]
    for name, command in commands(app):
        context = command.context_class(command, info_name=name)
        usage = command.get_usage(context).removeprefix("Usage: ")
        parts += [f"## `{name}`", _text(command.help), f"    {' '.join(usage.split())}"]
        parts += [_parameter_table(title, rows) for title, rows in _panels(command)]
    return "\n\n".join(parts) + "\n"


def undocumented(app: typer.Typer, reference: str, pages: Mapping[str, str]) -> list[str]:
    """Return one line per gap in the documentation of an application.

    Args:
        app: the application.
        reference: the generated page.
        pages: text of the hand-written pages, by name.
    """
    gaps = []
    for name, command in commands(app):
        section = reference.partition(f"## `{name}`\n")[2].partition("\n## ")[0]
        if not section:
            gaps.append(f"{name}: no section in the reference")
        if not (command.help or "").strip():
            gaps.append(f"{name}: no help text")
        if not any(re.search(rf"\b{re.escape(name)}\b(?! *:)", text) for text in pages.values()):
            gaps.append(f"{name}: not named on any page")
        for parameter in _visible(command):
            label = _label(parameter)
            if label not in section:
                gaps.append(f"{name} {label}: not in the reference")
            if not (parameter.help or "").strip():
                gaps.append(f"{name} {label}: no help text")
    return gaps


def _visible(command: Any) -> list[Any]:
    return [parameter for parameter in command.params if not parameter.hidden]


def _panels(command: Any) -> Iterator[tuple[str, list[Any]]]:
    panels: dict[str, list[Any]] = {}
    for parameter in _visible(command):
        usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
        panels.setdefault(parameter.rich_help_panel or usual, []).append(parameter)
    yield from panels.items()


def _parameter_table(title: str, parameters: list[Any]) -> str:
    lines = [f"| {title} | |", "|-|-|"]
    for parameter in parameters:
        text = _text(parameter.help)
        if parameter.required:
            text += " (required)"
        elif (
            parameter.show_default
            and parameter.default not in (None, "", False, [])
            and not callable(parameter.default)
        ):
            text += f" (default: {parameter.default})"
        lines.append(f"| {_label(parameter)} | {text} |")
    return "\n".join(lines)


def _label(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`"
    flags = ", ".join([*parameter.opts, *parameter.secondary_opts])
    switch = parameter.secondary_opts or isinstance(parameter.default, bool) or parameter.is_flag
    value = "" if switch else f" {parameter.metavar or parameter.name.strip('_').upper()}"
    return f"`{flags}{value}`"


def _text(text: str | None) -> str:
    """Join the lines of a help text; escape what Markdown or HTML would read as markup."""
    joined = " ".join((text or "").split())
    return re.sub(r"(`[^`]*`)|([<|*_])", lambda m: m[1] or {"<": "&lt;"}.get(m[2], "\\" + m[2]), joined)


# ---- the configuration


def configuration_page() -> str:
    """Return the Markdown page of every field of every configuration class."""
    parts = [
        "# Configuration",
        "This page is generated from the classes. A field of `codi distill` can be set in a file "
        "(`--config FILE`) or one at a time (`-O path.to.field=value`); see [training](../training.md).",
    ]
    for title, models in sections():
        parts.append(f"## {title}")
        for name, model in models:
            parts += [f"### `{name}`", _text((model.__doc__ or "").partition("\n\n")[0]), field_table(model)]
    return "\n\n".join(part for part in parts if part) + "\n"


def sections() -> Iterator[tuple[str, list[tuple[str, type[BaseModel]]]]]:
    """Yield (heading, [(name, class)]) of every configuration class, plug-ins of other packages excluded."""
    yield "Commands", list(_config_models())
    for title, module, registry in (
        ("Adapter kinds", "codi_hub.adapters", "KINDS"),
        ("Methods", "codi_hub.losses", "METHODS"),
    ):
        found = getattr(importlib.import_module(module), registry)
        yield title, [(name, found.load(name).Config) for name in found.own]
    yield "Tasks", [(name, task_options(name)) for name in task_names()]


def task_names() -> list[str]:
    """Return the names of this package's tasks."""
    from codi_hub import tasks

    return sorted(tasks.TASKS.own)


def task_options(name: str) -> type[BaseModel]:
    """Return the options class of a task."""
    from codi_hub import tasks

    options: type[BaseModel] = type(tasks.load(name)).Options
    return options


def _config_models() -> Iterator[tuple[str, type[BaseModel]]]:
    package = importlib.import_module("codi_hub.config")
    for info in pkgutil.iter_modules(package.__path__, "codi_hub.config."):
        for name, value in vars(importlib.import_module(info.name)).items():
            defined_here = isinstance(value, type) and value.__module__ == info.name
            if defined_here and issubclass(value, BaseModel) and value.model_fields and not name.startswith("_"):
                yield name, value


def field_table(model: type[BaseModel]) -> str:
    """Return a Markdown table of a model's fields: name, type with its limits, default, meaning."""
    schema = model.model_json_schema()
    lines = ["| field | type | default | meaning |", "|-|-|-|-|"]
    for name, entry in schema.get("properties", {}).items():
        kind = _type(entry, schema.get("$defs", {}))
        section = schema.get("$defs", {}).get(str(entry.get("$ref", "")).rpartition("/")[2], {})
        default = f"`{_plain(entry['default'])}`" if "default" in entry and not section else "see there"
        if "default" not in entry:
            default = "required"
        meaning = entry.get("description") or section.get("description")
        lines.append(f"| `{name}` | {kind} | {default} | {_text(meaning)} |")
    return "\n".join(lines) if len(lines) > 2 else "No fields."


def _plain(value: Any) -> str:
    return {"None": "none", "True": "true", "False": "false", "": "(empty)"}.get(str(value), str(value))


def _type(entry: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "anyOf" in entry:
        return " or ".join(dict.fromkeys(_type(option, definitions) for option in entry["anyOf"]))
    if "$ref" in entry:
        name = entry["$ref"].rpartition("/")[2]
        target = definitions.get(name, {})
        return _type(target, definitions) if "enum" in target else f"`{name}`"
    if "const" in entry:
        return f"`{entry['const']}`"
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    kind = {"null": "none", "string": "text"}.get(entry.get("type", "any"), entry.get("type", "any"))
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {entry[key]:g}" for key, sign in signs.items() if key in entry]
    return " ".join([kind, ", ".join(limits).replace("<", "&lt;")]).strip()


# ---- the library


def api_page() -> str:
    """Return the Markdown page that asks mkdocstrings for the public names and the extension interfaces."""
    parts = ["# Library", "Everything that `from codi_hub import NAME` offers, then what extensions build on."]
    for name in codi_hub.__all__:
        value = getattr(codi_hub, name)
        if not name.startswith("__"):
            parts.append(f"::: {value.__module__}.{getattr(value, '__qualname__', name)}")
    parts += [f"::: {name}" for name in EXTENSION_API]
    return "\n\n".join(parts) + "\n"


# ---- tables in other pages


def filled(markdown: str) -> str:
    """Replace markers such as `<!-- options: superres -->` by tables made from the code."""
    return MARKER.sub(lambda found: _table(found["what"], found["name"]), markdown)


def _table(what: str, name: str | None) -> str:
    if what == "options":
        return field_table(task_options(name or ""))
    return _groups() if what == "plugins" else _registered(what)


def _registered(what: str) -> str:
    module, registry = {"kinds": ("codi_hub.adapters", "KINDS"), "methods": ("codi_hub.losses", "METHODS")}[what]
    return ", ".join(f"`{name}`" for name in getattr(importlib.import_module(module), registry).own)


def _groups() -> str:
    from codi_hub.plugins import Plugins

    lines = ["| entry-point group | what | names of this package |", "|-|-|-|"]
    for module in ("tasks", "adapters", "losses", "diffusion", "evaluation.metrics", "backbones"):
        for value in vars(importlib.import_module(f"codi_hub.{module}")).values():
            if isinstance(value, Plugins):
                lines.append(f"| `{value.group}` | {value.what} | {', '.join(f'`{name}`' for name in value.own)} |")
    return "\n".join(lines)


# ---- MkDocs


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    pages = {
        "reference/cli.md": cli_page(codi_hub.cli.application.app()),
        "reference/configuration.md": configuration_page(),
        "reference/api.md": api_page(),
    }
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the tables of a page."""
    return filled(markdown)
