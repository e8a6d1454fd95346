"""Names of files that belong together, in every spelling that systems give them."""

import os
import unicodedata
from pathlib import Path

import pytest

from codi_hub.images import sidecars
from codi_hub.images.sidecars import beside, name_key, named


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("café.png", unicodedata.normalize("NFD", "café.png")),
        ("sub\\a.png", "sub/a.png"),
        ("./a.PNG", "a.png"),
        ("a//b/../c.Jpg", "a/c.jpg"),
    ],
)
def test_two_spellings_of_one_name(one, other):
    assert name_key(one) == name_key(other)


def test_the_case_of_a_stem_is_kept():
    assert name_key("A.png") != name_key("a.png")


def test_a_file_beside_an_image(tmp_path):
    decomposed = unicodedata.normalize("NFD", "é")
    for name in ("a.mask.PNG", "A.txt", f"{decomposed}.TXT", "b_mask.jpg", "b.txt.bak"):
        (tmp_path / name).touch()
    assert beside(tmp_path / "a.png", (".mask.jpg", ".mask.png")) == tmp_path / "a.mask.PNG"
    assert beside(tmp_path / "a.png", (".txt",)) is None
    assert beside(tmp_path / "é.png", (".txt",)) == tmp_path / f"{decomposed}.TXT"
    assert beside(tmp_path / "b.png", (".txt",)) is None
    assert beside(tmp_path / "nowhere" / "b.png", (".txt",)) is None


def test_a_relative_name_in_a_folder(tmp_path):
    decomposed = unicodedata.normalize("NFD", "é")
    (tmp_path / decomposed).mkdir()
    (tmp_path / decomposed / "a.PNG").touch()
    assert named(tmp_path, "é\\a.png") == tmp_path / decomposed / "a.PNG"
    assert named(tmp_path, "é/b.png") is None


def test_a_listing_is_read_again_when_its_folder_changed(tmp_path, monkeypatch):
    listings: list[str] = []
    real = os.listdir
    monkeypatch.setattr(sidecars.os, "listdir", lambda path: listings.append(path) or real(path))
    (tmp_path / "a.txt").touch()
    os.utime(tmp_path, (1e9, 1e9))
    for _ in range(3):
        assert beside(tmp_path / "a.png", (".txt",)) == tmp_path / "a.txt"
    assert len(listings) == 1
    (tmp_path / "b.txt").touch()
    assert beside(Path(tmp_path, "b.png"), (".txt",)) == tmp_path / "b.txt"
