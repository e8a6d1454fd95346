"""One line for people out of a pydantic validation error."""

from __future__ import annotations

from pydantic import BaseModel, ValidationError

from codi_hub.errors import one_line


def problem(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """Describe the first problem: the field's path, what is wrong, and the value or the fields there are.

    Args:
        error: of validating `model`.
        model: whose field names are listed where an unknown one was given.
        prefix: path of the model itself, such as "adapter".
    """
    first = error.errors()[0]
    path = ".".join(str(part) for part in (prefix, *first["loc"]) if part != "")
    if first["type"] == "extra_forbidden":
        return f"{one_line(path, 80)}: no such setting; there are {', '.join(model.model_fields) or 'none'}"
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:  # of a check that concerns several fields
        return message
    return f"{one_line(path, 80)}: {message[0].lower()}{message[1:]}, not {one_line(repr(first['input']), 40)}"
