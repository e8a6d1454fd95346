"""Paths of objects in stores: URLs with the parts of a path, and the errors of a store."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PosixPath

from codi_hub.errors import CodiError, NotFound, UsageError, one_line
from codi_hub.filesystems import STORES, opened, reason, shown

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+://")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+):/+(.*)", re.DOTALL)


class UrlPath(PosixPath):
    """The path of an object or a folder in a store: `s3://bucket/sub/a.png`, with the parts of a path.

    What would open it as a local file raises TypeError.
    """

    __slots__ = ()

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    def __fspath__(self) -> str:
        raise TypeError(f"{self} is not a local file")

    def absolute(self) -> UrlPath:
        """Return the path itself."""
        return self


def is_url(text: str) -> bool:
    """Return whether a text is an URL, and no path."""
    return _SCHEME.match(text) is not None


def as_path(text: str) -> Path:
    """Return the path that a text names, in a store if it is an URL."""
    return UrlPath(text) if is_url(text) else Path(text)


def place(path: Path | str) -> Path:
    """Return an input or output that a user named as a path; `Path("s3://bucket")` is read as it was meant.

    Raises:
        UsageError: an URL that is not of a store, or that has a password or no bucket.
    """
    match = None if isinstance(path, UrlPath) or os.path.lexists(path) else _URL.fullmatch(str(path))
    if match is None:
        return Path(path) if isinstance(path, str) else path
    scheme = match[1].lower()
    url = f"{scheme}://{'/' * (scheme == 'file')}{match[2]}"  # a path has lost its second slash
    if scheme not in STORES:
        raise UsageError(
            f"{shown(url)}: not read or written by URL: give a local file or folder, or a store as s3://, gs://, hf://"
        )
    if shown(url) != one_line(url, 200):
        raise UsageError(
            f"{shown(url)}: give the credentials of a store in the environment, such as AWS_ACCESS_KEY_ID, not in its "
            "URL, which others can see"
        )
    if not match[2].strip("/") or ".." in match[2].split("/"):
        raise UsageError(f"{shown(url)}: name a bucket, and a folder in it without ..: s3://bucket/folder")
    opened(url)
    return UrlPath(url)


@contextmanager
def store_errors(path: UrlPath) -> Iterator[None]:
    """Turn whatever a store raises into a CodiError of one line."""
    try:
        yield
    except CodiError:
        raise
    except FileNotFoundError as error:
        raise NotFound(f"{path}: there is no such object or bucket") from error
    except PermissionError as error:
        raise CodiError(
            f"{path}: access denied ({reason(error)}): check the store's credentials, such as AWS_ACCESS_KEY_ID"
        ) from error
    except Exception as error:
        if type(error).__name__ == "NoCredentialsError":  # botocore's
            raise CodiError(f"{path}: no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
        raise CodiError(
            f"{path}: {reason(error)}: check the name, the network, and the store's settings, such as AWS_ENDPOINT_URL"
        ) from error
