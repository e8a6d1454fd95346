"""Blobs and bundled files: stored whole, used as recorded, verified both ways."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from codi_hub.errors import CodiError, InvalidInput, NotFound
from codi_hub.registry import Registry, store, verify

WEIGHTS = "adapter.safetensors"

pytestmark = pytest.mark.usefixtures("backend")


def _overwrite(path: Path, content: str) -> None:
    path.chmod(0o644)
    path.write_text(content)


def _kinds(registry: Registry) -> list[tuple[str, str]]:
    return [(problem.kind, Path(problem.path).name) for problem in registry.verify()]


def test_equal_files_are_stored_once_under_their_hash(registry: Registry, add, home: Path) -> None:
    one, two = add()[0], add("x")[0]
    assert registry.adapters.file(one, WEIGHTS) == registry.adapters.file(two, WEIGHTS)
    path = registry.adapters.file(one, WEIGHTS)
    assert path.relative_to(home) == Path("blobs", "sha256", one.sha256[:2], one.sha256)
    assert store.sha256(path) == one.sha256
    assert registry.verify() == []


def test_a_file_is_read_again_only_when_its_stamp_has_changed(
    registry: Registry, add, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = add()[0]
    read: list[Path] = []
    monkeypatch.setattr(verify, "sha256", lambda path: read.append(path) or store.sha256(path))
    path = registry.adapters.file(row, WEIGHTS)
    assert read == []
    os.utime(path)
    registry.adapters.file(row, WEIGHTS)
    registry.adapters.file(row, WEIGHTS)
    assert read == [path]


def test_drift_is_refused_and_reported(registry: Registry, add) -> None:
    row = add(weights="good")[0]
    path = registry.adapters.file(row, WEIGHTS)
    _overwrite(path, "evil")
    with pytest.raises(InvalidInput, match=r"adapter\.safetensors of depth:1 at .* is not what was registered"):
        registry.adapters.file(row, WEIGHTS)
    assert _kinds(registry) == [("drift", path.name)]
    assert "needed by depth:1 for nano" in registry.verify()[0].message
    path.unlink()
    with pytest.raises(NotFound, match="is missing at"):
        registry.adapters.file(row, WEIGHTS)
    assert _kinds(registry) == [("missing", path.name)]


def test_drift_that_verify_reported_is_refused_though_the_stamp_is_equal(registry: Registry, add) -> None:
    row = add(weights="good")[0]
    path = registry.adapters.file(row, WEIGHTS)
    times = path.stat()
    _overwrite(path, "evil")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert registry.adapters.file(row, WEIGHTS) == path  # nothing short of reading it can tell
    assert _kinds(registry) == [("drift", path.name)]
    with pytest.raises(InvalidInput):
        registry.adapters.file(row, WEIGHTS)


def test_adding_the_same_content_repairs_a_damaged_blob(registry: Registry, add) -> None:
    row = add(weights="good")[0]
    _overwrite(registry.adapters.file(row, WEIGHTS), "evil")
    add("other", weights="good")
    assert registry.adapters.file(row, WEIGHTS).read_text() == "good"
    assert registry.verify() == []


def test_orphans_and_leftovers_are_reported(registry: Registry, add, home: Path) -> None:
    add()
    (home / "blobs" / "sha256" / "zz").mkdir()
    (home / "blobs" / "sha256" / "zz" / "stranger").write_text("?")
    (home / "blobs" / "tmp" / "half.part").write_text("ha")
    assert _kinds(registry) == [("orphan", "stranger"), ("leftover", "half.part")]


def test_a_full_disk_leaves_no_row_and_no_file(registry: Registry, add, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store.os, "fsync", full)
        with pytest.raises(CodiError, match=r"could not be stored under .*: No space left on device"):
            add()
    assert registry.adapters.list() == []
    assert registry.verify() == []


def test_bundled_models_are_registered_in_place(home: Path, bundle: Callable[..., Path]) -> None:
    root = bundle(("superres", 1, "sr"), ("depth", 1, "d"))
    for _ in range(2):  # again: nothing changes
        with Registry.open(home, bundled=root) as registry:
            assert [row.ref for row in registry.adapters.list()] == ["depth:1", "superres:1"]
            row = registry.adapters.resolve("superres")
            assert (row.bundled, row.base, row.tags, row.bytes) == (True, "nano", ("latest",), 2)
            assert registry.adapters.file(row, WEIGHTS) == root / "superres" / WEIGHTS
            base = registry.bases.get()
            assert (base.name, base.bundled, base.default, base.source) == ("nano", True, True, str(root / "base"))
            assert registry.verify() == []
    assert not any((home / "blobs").rglob("*[0-9a-f]"))


def test_the_user_s_versions_follow_the_bundled_ones(
    home: Path, bundle: Callable[..., Path], folder: Callable[[str], Path]
) -> None:
    with Registry.open(home, bundled=bundle(("depth", 1, "d"))) as registry:
        facts = {"base": "nano", "kind": "control", "steps": 4, "parameters": 1, "metrics": {}}
        row, moved = registry.adapters.add(folder("mine"), task="depth", **facts)
        assert (row.ref, moved) == ("depth:2", True)
    with Registry.open(home, bundled=bundle(("depth", 1, "new"), score=99.0)) as registry:
        assert [(row.version, row.bundled) for row in registry.adapters.list()] == [(2, False), (3, True)]
        assert registry.adapters.resolve("depth") == registry.adapters.resolve("depth:2")
        with pytest.raises(NotFound, match="depth:1 came with another CoDi Hub and has been replaced"):
            registry.adapters.resolve("depth:1")


def test_a_changed_manifest_changes_the_rows(home: Path, bundle: Callable[..., Path]) -> None:
    with Registry.open(home, bundled=bundle(("depth", 1, "d"), ("old", 1, "o"))) as registry:
        before = registry.adapters.resolve("old")
    with Registry.open(home, bundled=bundle(("depth", 1, "d"), score=7.0)) as registry:
        assert [(row.ref, row.score, row.tags) for row in registry.adapters.list()] == [("depth:1", 7.0, ("latest",))]
        with pytest.raises(NotFound):
            registry.adapters.file(before, "nothing")
    with Registry.open(home, bundled=bundle(("depth", 2, "better"))) as registry:
        assert registry.adapters.resolve("depth").ref == "depth:2"
    with Registry.open(home, bundled=bundle(("depth", 1, "d"), ("old", 1, "o"))) as registry:  # the old package again
        assert [(row.ref, row.tags) for row in registry.adapters.list()] == [
            ("depth:1", ("latest",)),
            ("old:1", ("latest",)),
        ]


def test_a_user_base_with_the_bundled_name_is_kept(
    home: Path, bundle: Callable[..., Path], nothing_bundled: Path
) -> None:
    with Registry.open(home, bundled=nothing_bundled) as registry:
        registry.bases.add("nano", "/mine", family="mine")
    with Registry.open(home, bundled=bundle(("depth", 1, "d"))) as registry:
        assert [(row.name, row.bundled) for row in registry.bases.list()] == [("nano", False), ("nano-bundled", True)]
        assert registry.bases.get().source == "/mine"
        assert registry.adapters.resolve("depth", "nano-bundled").bundled


def test_bundled_files_are_verified_too(home: Path, bundle: Callable[..., Path]) -> None:
    root = bundle(("depth", 1, "d"))
    (root / "base" / "unet" / "model.safetensors").write_text("other")
    (root / "depth" / WEIGHTS).write_text("x")
    with Registry.open(home, bundled=root) as registry:
        assert _kinds(registry) == [("drift", "model.safetensors"), ("drift", WEIGHTS)]
        with pytest.raises(InvalidInput, match="is not what was registered"):
            registry.adapters.file(registry.adapters.resolve("depth"), WEIGHTS)


@pytest.mark.parametrize("text", ["", "[]", '{"base": {}}', '{"base": {"name": "nano"}, "adapters": []}'])
def test_a_damaged_manifest_is_a_one_line_error(home: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InvalidInput, match="install CoDi Hub again"):
        Registry.open(home, bundled=tmp_path)
