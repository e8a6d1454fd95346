"""YAML as configurations use it: plain values, the scalars of YAML 1.2, no tags, no aliases.

In YAML 1.1, which PyYAML reads, `guidance: off` is false and `lr: 1e-4` is text.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml

from codi_hub.errors import InvalidInput, one_line

MAX_DIGITS = 100
_SCALARS = (  # YAML 1.2, section 10.3.2
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?[0-9]+", [*"-+0123456789"]),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", [*"-+0123456789."]),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "an alias", self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes text that is another type in YAML 1.1 or 1.2."""


for _tag, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: _whole(node.value))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(re.sub(r"\.([in])", r"\1", node.value)))


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def load(text: str) -> Any:
    """Return the value of a YAML document.

    Raises:
        InvalidInput: not YAML, or YAML with a tag, an alias or a key twice.
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        reason = getattr(error, "problem", None) or error
        raise InvalidInput(f"{where}not readable as YAML: {one_line(reason, 160)}") from error


def dump(value: Any) -> str:
    """Return plain values as a YAML document that `load` reads back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)
