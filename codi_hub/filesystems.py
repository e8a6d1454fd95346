"""File systems by URL: s3://, gs://, memory://, hf://, ... through fsspec."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from codi_hub.errors import CodiError, NotFound, UsageError, one_line, system_reason

STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "hf", "memory")  # which write an object whole or not at all
PACKAGES = {"s3": "codi-hub[s3]", "s3a": "codi-hub[s3]", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


def shown(url: str) -> str:
    """Return an URL for messages, without a user's name and password.

    A password may have a slash or an @ that should have been escaped: then some of the path is left out too.
    """
    protocol, slashes, rest = url.partition("://")
    host = rest.partition("/")[0]
    if slashes and re.search(r":(?!\d*$)", host):  # a password, not a port
        rest = rest.rpartition("@")[2]
    elif slashes:
        rest = host.rpartition("@")[2] + rest[len(host) :]
    return one_line(protocol + slashes + rest, 200)


def opened(url: str) -> tuple[Any, str]:
    """Return the file system and the path of an URL, without a slash at its end. Raises UsageError or CodiError."""
    import fsspec

    protocol = url.partition("://")[0]
    try:
        system, root = fsspec.core.url_to_fs(url, use_listings_cache=False)  # others write there too
    except ImportError as error:
        remedy = f"pip install {PACKAGES[protocol]}" if protocol in PACKAGES else one_line(error, 120)
        raise UsageError(f"{shown(url)}: {protocol}:// needs a package that is not installed: {remedy}") from error
    except ValueError as error:
        raise UsageError(f"{shown(url)}: no file system is called {one_line(protocol, 40)}") from error
    except Exception as error:
        raise CodiError(f"{shown(url)} cannot be opened: {reason(error)}") from error
    return system, str(root).rstrip("/")


def write_whole(system: Any, target: str, content: Path | bytes, scratch: str) -> None:
    """Write a file, whole or not at all: where a reader could see half of it, under another name that is renamed.

    Args:
        scratch: folder of the other name, in the same file system.
    """
    protocols = {system.protocol} if isinstance(system.protocol, str) else {*system.protocol}
    is_store = not protocols.isdisjoint(STORES)
    written = target if is_store else f"{scratch}/{uuid.uuid4().hex}.part"
    for name in () if is_store else (written, target):
        system.makedirs(name.rpartition("/")[0], exist_ok=True)
    try:
        if isinstance(content, bytes):
            system.pipe_file(written, content)
        else:
            system.put_file(str(content), written)
        if written != target:
            system.mv(written, target)
    except BaseException:
        if written != target:
            with suppress(Exception):  # it is not there, or as unreachable as the file system is
                system.rm_file(written)
        raise


@contextmanager
def file_system_errors(name: str, missing: str = "is not there") -> Iterator[None]:
    """Turn whatever a file system raises into a CodiError of one line.

    Args:
        name: what is read or written, for messages.
        missing: said after the name of what is not there.
    """
    try:
        yield
    except CodiError:
        raise
    except FileNotFoundError as error:
        raise NotFound(f"{name} {missing}") from error
    except Exception as error:  # file systems raise kinds of their own
        raise CodiError(f"{name}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Return on one line why a file system refused, without a user's name and password."""
    text = one_line(system_reason(error) or error, 160) or type(error).__name__
    return re.sub(r"(?<=://)[^\s\"']*@", "", text)
