import pytest

from codi_hub.filesystems import shown


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
