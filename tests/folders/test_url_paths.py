"""Paths of objects in stores: the parts of an URL, and never a local file."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from codi_hub.errors import UsageError
from codi_hub.paths import absolute_path, display_path
from codi_hub.urls import UrlPath, as_path, place


def test_an_url_has_the_parts_of_a_path():
    path = place(Path("s3://bucket/sub dir/é.png"))  # which has one slash less
    assert path == place("S3://bucket/sub dir/é.png/") == as_path("s3://bucket/sub dir/é.png")
    assert (str(path), path.name, path.suffix) == ("s3://bucket/sub dir/é.png", "é.png", ".png")
    assert str(path.with_name("a.txt")) == "s3://bucket/sub dir/a.txt"
    assert str(path.parent / "a:/b") == "s3://bucket/sub dir/a:/b"
    assert path.absolute() == pickle.loads(pickle.dumps(path)) == path
    assert absolute_path(path) == absolute_path(str(path)) == display_path(path) == "s3://bucket/sub dir/é.png"


def test_an_url_opens_no_local_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = UrlPath("s3://bucket/a.png")
    for use in (open, UrlPath.mkdir, UrlPath.touch, UrlPath.stat, UrlPath.unlink):
        with pytest.raises(TypeError, match=r"^s3://bucket/a\.png is not a local file$"):
            use(path)
    assert list(tmp_path.iterdir()) == []


def test_a_local_folder_with_such_a_name_stays_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("s3:/bucket").mkdir(parents=True)
    assert not isinstance(place(Path("s3://bucket")), UrlPath)
    assert place("a:b.png") == Path("a:b.png")
    with pytest.raises(UsageError, match=r"^ftp://there: not read or written by URL"):
        place("ftp://there")
