"""The base class of all options: frozen pydantic models whose errors are one line that names the field.

The docstring below a field is its help: the first paragraph on the command line, all of it in the reference and as the
comment of a `config.yaml`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from codi_hub.errors import UsageError
from codi_hub.validation import problem


class Options(BaseModel):
    """Options that are checked when they are created, from Python as from the command line.

    Raises:
        UsageError: an unknown field or a value outside its limits; the message begins with the field's path.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
    section: ClassVar[str] = ""
    """Where these options stand in the whole configuration, such as "training"; "" at the top."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            near = _paths(type(self)) if not self.section else {}
            raise UsageError(problem(error, type(self), self.section, near)) from None

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, checked again. Raises UsageError."""
        return type(self)(**{**dict(self), **changes})


def option(
    default: Any,
    *flags: str,
    panel: str = "Options",
    metavar: str | None = None,
    repeats: bool = False,
    resumable: bool = False,
    recorded: bool = True,
    **limits: Any,
) -> Any:
    """Return a field with what the command line and a resumed run need to know of it.

    Args:
        flags: its names on the command line; without any it has none there.
        panel: the heading in the help under which it stands.
        metavar: placeholder of a value that is parsed from text.
        repeats: whether the flag is repeated, once for every value of a tuple.
        resumable: whether a resumed run may be given another value.
        recorded: whether a run writes it to its folder.
        limits: `ge`, `le`, `min_length`, ... as of `pydantic.Field`.
    """
    extra: Any = {"flags": list(flags), "panel": panel, "metavar": metavar, "repeats": repeats}
    extra = {"option": extra | {"resumable": resumable, "recorded": recorded}}
    if isinstance(default, dict):
        return Field(default_factory=dict, json_schema_extra=extra, **limits)
    return Field(default, json_schema_extra=extra, **limits)


@dataclass(frozen=True)
class Declared:
    """A field of a tree of options.

    Attributes:
        path: dotted names from the top, such as `training.lr`.
        field: pydantic's description of it.
        flags, panel, metavar, repeats, resumable, recorded: see `option`.
    """

    path: str
    field: FieldInfo
    flags: Sequence[str] = ()
    panel: str = "Options"
    metavar: str | None = None
    repeats: bool = False
    resumable: bool = False
    recorded: bool = True

    @property
    def flag(self) -> str | None:
        """The long flag; of a switch such as "--a/--no-a", its first half."""
        long = [flag for flag in self.flags if flag.startswith("--")]
        return long[0].split("/")[0] if long else None

    @property
    def placeholder(self) -> str | None:
        """Placeholder of its value in the help: as declared, or the choices."""
        return self.metavar or "|".join(map(str, self.choices)) or None

    @property
    def choices(self) -> tuple[Any, ...]:
        """Values that it can have, where they are listed."""
        annotation = _without_none(self.field.annotation)
        return get_args(annotation) if get_origin(annotation) is Literal else ()

    @property
    def is_mapping(self) -> bool:
        """Whether it is given as KEY=VALUE, as --set is."""
        return get_origin(_without_none(self.field.annotation)) is dict

    @property
    def type(self) -> Any:
        """Type that Typer parses: text for choices and fields with a placeholder, a list for what repeats."""
        annotation = _without_none(self.field.annotation)
        if self.repeats or self.is_mapping:
            return list[str]
        if self.choices or self.metavar:
            return str
        return annotation

    @property
    def help(self) -> str:
        """First paragraph of the docstring on one line, without its full stop."""
        paragraph = inspect.cleandoc(self.field.description or "").partition("\n\n")[0]
        return " ".join(paragraph.split()).removesuffix(".")


def _without_none(annotation: Any) -> Any:
    members = [member for member in get_args(annotation) if member is not type(None)]
    return members[0] if len(members) == 1 and type(None) in get_args(annotation) else annotation


def declared(model: type[BaseModel], prefix: str = "") -> Iterator[Declared]:
    """Yield every field of a tree of options, sections before what stands after them."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, Options):
            yield from declared(field.annotation, f"{path}.")
        else:
            extra = field.json_schema_extra
            told: Any = extra.get("option", {}) if isinstance(extra, dict) else {}
            yield Declared(path, field, **told)


def _paths(model: type[BaseModel]) -> dict[str, str]:
    """Return the path of every field inside a section by its name, for whoever leaves the section out."""
    return {one.path.rpartition(".")[2]: one.path for one in declared(model) if "." in one.path}
