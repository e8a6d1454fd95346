import sys

import fsspec.registry  # noqa: F401
import pytest

from codi_hub.errors import UsageError
from codi_hub.filesystems import opened, reason, shown


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/in", "s3://bucket/in"),
        ("s3://bucket/a@b.png", "s3://bucket/a@b.png"),
        ("sftp://host:22/x@y/z", "sftp://host:22/x@y/z"),
        ("sftp://user@host/x@y", "sftp://host/x@y"),
        ("sftp://user:secret@host:22/x", "sftp://host:22/x"),
        ("sftp://user:sec/ret@host/x", "sftp://host/x"),
        ("sftp://user:sec@ret@host/x", "sftp://host/x"),
        ("sftp://user:s@ec/r@et@host/x", "sftp://host/x"),
        ("/folder/a@b", "/folder/a@b"),
    ],
)
def test_no_password_is_shown(url: str, expected: str) -> None:
    assert shown(url) == expected


def test_what_a_file_system_says_is_shown_without_user_and_password():
    error = OSError('cannot connect to "http://me:s@cret@host/x"\nagain')
    assert reason(error) == 'cannot connect to "http://host/x" again'
    assert reason(KeyError()) == "KeyError"


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setattr(sys.modules["fsspec.registry"], "registry", {})  # of what was imported
    with pytest.raises(UsageError, match=r"^s3://bucket/in: s3:// needs .* not installed: pip install codi-hub\[s3\]$"):
        opened("s3://bucket/in")
