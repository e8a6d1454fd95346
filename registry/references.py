"""References to adapters: `task`, `task:version`, `task:tag`."""

from __future__ import annotations

import re
from typing import NamedTuple

from codi_hub.errors import UsageError

LATEST = "latest"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_BASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TAG = re.compile(r"(?!\d+$)[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Reference(NamedTuple):
    """A parsed reference; exactly one of `version` and `tag` is set."""

    task: str
    version: int | None
    tag: str | None

    def __str__(self) -> str:
        return f"{self.task}:{self.version if self.tag is None else self.tag}"


def parse(ref: str) -> Reference:
    """Parse a reference: `depth` is depth:latest, `depth:3` version 3, `depth:prod` a tag. Raises UsageError."""
    task, colon, which = ref.partition(":")
    if not _NAME.fullmatch(task) or (colon and not which):
        raise UsageError(f"{ref!r} is not a reference to an adapter; write task, task:version or task:tag")
    if re.fullmatch(r"[0-9]{1,9}", which):
        return Reference(task, int(which), None)
    return Reference(task, None, check_tag(which) if colon else LATEST)


def check_task(name: str) -> str:
    """Return the name if a task can have it. Raises UsageError."""
    return _check(_NAME, name, "task", "lower-case letters, digits, _ and -")


def check_base(name: str) -> str:
    """Return the name if a base can have it. Raises UsageError."""
    return _check(_BASE, name, "base", "letters, digits, ., _ and -")


def check_tag(name: str) -> str:
    """Return the name if a tag can have it; a number is a version. Raises UsageError."""
    return _check(_TAG, name, "tag", "letters, digits, ., _ and -, not digits alone")


def _check(pattern: re.Pattern[str], name: str, what: str, allowed: str) -> str:
    if not pattern.fullmatch(name):
        raise UsageError(f"{name!r} cannot name a {what}: use 1 to 64 {allowed}, beginning with a letter or digit")
    return name
