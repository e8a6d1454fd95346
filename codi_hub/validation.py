"""One line for people out of a pydantic validation error."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from codi_hub.errors import UsageError, one_line

Model = TypeVar("Model", bound=BaseModel)

MAX_SHOWN = 60  # characters of a value in a message
_REQUIREMENTS = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "dict_type": "a mapping of names to values",
    "model_type": "a mapping of fields",
}


def problem(
    error: ValidationError, model: type[BaseModel], prefix: str = "", elsewhere: Mapping[str, str] | None = None
) -> str:
    """Describe the first problem: the field's path, its value, and what it can be.

    Args:
        error: of validating `model`.
        model: whose field names are suggested where an unknown one was given.
        prefix: path of the model itself, such as "adapter".
        elsewhere: name -> path of fields that stand in another section, to be suggested too.
    """
    first = error.errors()[0]
    path = ".".join(str(part) for part in (prefix, *first["loc"]) if part != "")
    if first["type"] == "extra_forbidden":
        suggestion = _suggestion(str(first["loc"][-1]), model, prefix, elsewhere)
        return f"{one_line(path, MAX_SHOWN)}: no such field; {suggestion}"
    if first["type"] == "missing":
        return f"{path}: missing"
    if not first["loc"]:  # of a check that concerns several fields
        return f"{prefix}{'.' * bool(prefix)}{_requirement(first)}"
    return f"{one_line(path, MAX_SHOWN)} {shown(first['input'])}: {_requirement(first)}"


def validated(model: type[Model], values: Mapping[str, Any], section: str, owner: str = "") -> Model:
    """Return a model of values. Raises UsageError, which calls an unknown field one that the `owner` does not have."""
    try:
        return model(**values)
    except ValidationError as error:
        text = problem(error, model, section)
        raise UsageError(text.replace(": no such field;", f": not a field of {owner};") if owner else text) from None


def shown(value: Any) -> str:
    """Return a value as it stands in a message."""
    text = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return one_line(text, MAX_SHOWN) or "''"


def _suggestion(name: str, model: type[BaseModel], prefix: str, elsewhere: Mapping[str, str] | None) -> str:
    if elsewhere and name in elsewhere:
        return f"did you mean {elsewhere[name]}?"
    names = list(model.model_fields)
    near = difflib.get_close_matches(name, names, 1)
    if near:
        return f"did you mean {prefix}{'.' * bool(prefix)}{near[0]}?"
    return f"one of {', '.join(names)}" if names else "there is none"


def _requirement(first: Any) -> str:
    context = first.get("ctx", {})
    if first["type"] == "literal_error":
        return "one of " + str(context["expected"]).replace("'", "").replace(" or ", ", ")
    if first["type"] == "value_error":
        return one_line(context["error"], 160)
    template = _REQUIREMENTS.get(first["type"])
    numbers = {name: f"{value:g}" if isinstance(value, float) else value for name, value in context.items()}
    return template.format(**numbers) if template else one_line(first["msg"], 160).lower()
