"""Tags, copies, removals and garbage collection."""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from codi_hub.errors import CodiError, Conflict, InvalidInput, NotFound, UsageError
from codi_hub.record import AdapterRecord, BaseRecord
from codi_hub.registry import AdapterRow, Registry, verify
from codi_hub.registry.store import sha256

WEIGHTS = "adapter.safetensors"

pytestmark = pytest.mark.usefixtures("backend")


def _blobs(home: Path) -> int:
    return sum(path.is_file() for path in (home / "blobs" / "sha256").rglob("*"))


def test_a_tag_is_removed_only_from_the_version_that_has_it(registry: Registry, add) -> None:
    add(weights="a"), add(weights="b")
    registry.adapters.tag("depth:1", "prod")
    with pytest.raises(NotFound, match="the tag 'prod' is not on depth:2 but on depth:1; name that, or the task"):
        registry.adapters.untag("depth:2", "prod")
    assert registry.adapters.untag("depth:1", "prod").tags == ()
    registry.adapters.tag("depth:2", "prod")
    assert registry.adapters.untag("depth", "prod").tags == ("latest",)


# ---- rm


def test_removed_versions_are_refused_as_removed(registry: Registry, add) -> None:
    for weights in "abc":
        add(weights=weights)
    add("depth", "sd15")
    registry.adapters.tag("depth:2", "prod")
    row = registry.adapters.resolve("depth:2")
    assert [row.ref for row in registry.adapters.remove(["depth:prod"]).rows] == ["depth:2"]
    assert [(row.version, row.base) for row in registry.adapters.list()] == [(1, "nano"), (3, "nano"), (1, "sd15")]
    gone = r"depth:2 for base nano has been removed"
    for refused in (
        lambda: registry.adapters.resolve("depth:2"),
        lambda: registry.adapters.tag("depth:2", "again"),
        lambda: registry.adapters.copy("depth:2", "fog"),
        lambda: registry.adapters.remove(["depth:2"]),
    ):
        with pytest.raises(NotFound, match=gone + r"; there is depth:1\|3\|latest$"):
            refused()
    with pytest.raises(NotFound, match=gone + "; see `codi list depth`"):  # looked up before it was removed
        registry.adapters.file(row, WEIGHTS)
    with pytest.raises(NotFound, match="no depth:prod for base nano"):
        registry.adapters.resolve("depth:prod")
    registry.adapters.remove(["depth:1", "depth:3"])
    with pytest.raises(NotFound, match=gone + ", and task 'depth' has no adapter for base nano, but for sd15"):
        registry.adapters.resolve("depth:2")
    registry.adapters.remove(["depth"], "sd15")
    with pytest.raises(NotFound, match=gone + ", and task 'depth' has no adapter yet"):
        registry.adapters.resolve("depth:2")


def test_a_version_number_is_not_used_again(registry: Registry, add) -> None:
    add(weights="a"), add(weights="b")
    registry.adapters.remove(["depth:1", "depth:2"])
    registry.collect()
    assert add(weights="b")[0].ref == "depth:3"
    with pytest.raises(Conflict, match=r"1 adapters \(depth:3\) were distilled on it; remove them first with `codi rm"):
        registry.bases.remove("nano")
    registry.adapters.remove(["depth:3"])
    registry.bases.remove("nano")
    registry.collect()
    assert registry.verify() == []


@pytest.mark.parametrize(
    ("scores", "removed", "latest"),
    [
        ((3.0, 1.0, 2.0, 4.0), [4], 1),
        ((2.0, 2.0, 4.0), [3], 2),  # as good: the newer
        ((None, None, None), [3], 2),  # unknown: the newest
        ((1.0, None, 5.0), [3], 1),  # a known score goes before an unknown one
        ((3.0, 1.0, 4.0), [3, 1], 2),
        ((3.0, 4.0), [2, 1], None),
    ],
)
def test_latest_moves_to_the_best_remaining_version(registry: Registry, add, scores, removed, latest) -> None:
    for k, score in enumerate(scores):
        add(score=score, weights=f"w{k}")
    registry.adapters.tag(f"depth:{removed[0]}", "latest")
    moved = registry.adapters.remove([f"depth:{version}" for version in removed]).latest
    assert {task: row and (row.version, row.tags) for task, row in moved.items()} == {
        "depth": latest and (latest, ("latest",))
    }
    if latest:
        assert registry.adapters.resolve("depth").version == latest
    else:
        assert add(score=-9.0, weights="new")[1]


@pytest.mark.parametrize(
    ("before", "after", "moves"),
    [
        (("same", 2.0), ("same", 2.0), True),
        (("same", 2.0), ("same", 1.0), False),
        (("same", 2.0), ("other", 60.0), False),
        ((None, 2.0), ("other", 60.0), False),  # the holder was measured before pairs were recorded
        (("same", 2.0), ("same", None), False),  # a training that diverged
        (("same", None), ("same", None), True),
        (("same", None), ("other", None), False),
    ],
)
def test_latest_moves_between_scores_that_compare(registry: Registry, add, before, after, moves) -> None:
    for (pairs, score), weights in ((before, "a"), (after, "b")):
        moved = add(weights=weights, score=score, metrics={"held_out_pairs": pairs} if pairs else {})[1]
    assert moved == moves
    assert registry.adapters.resolve("depth").version == 1 + moves


@pytest.mark.parametrize(
    ("before", "moves"),
    [
        ({"adapter": "depth:1", "score": 1.0}, True),
        ({"adapter": "depth:1", "score": 3.0}, False),
        ({"adapter": "depth:7", "score": 1.0}, False),  # another version was the latest when the training began
    ],
)
def test_latest_moves_by_the_score_that_the_version_before_has_on_the_new_pairs(registry, add, before, moves) -> None:
    add(weights="a", score=60.0)
    row, moved = add(weights="b", score=2.0, metrics={"held_out_pairs": "x", "latest_before": before})
    assert moved == moves
    holder = registry.adapters.resolve("depth:1")
    assert row.compares(holder) == (before["adapter"] == holder.ref)


def test_a_removed_latest_is_followed_by_one_that_was_measured_on_the_same_pairs(registry: Registry, add) -> None:
    for pairs, score in (("photos", 2.0), ("cards", 60.0), ("photos", 1.0), ("photos", 3.0)):
        add(weights=f"{pairs} {score}", score=score, metrics={"held_out_pairs": pairs})
    assert registry.adapters.resolve("depth").version == 4
    registry.adapters.remove(["depth:4"])
    assert registry.adapters.resolve("depth").version == 1


def test_latest_stays_when_another_version_is_removed(registry: Registry, add) -> None:
    add(score=2.0, weights="a"), add(score=1.0, weights="b"), add("depth", "sd15")
    assert registry.adapters.remove(["depth:2"]).latest == {}
    assert registry.adapters.resolve("depth").version == 1
    assert registry.adapters.resolve("depth", "sd15").version == 1


@pytest.mark.parametrize(
    ("refs", "error", "line"),
    [
        (["depth:1", "depth:9"], NotFound, r"no depth:9 for base nano; there is depth:1\|2\|latest"),
        (["depth:1", "depth"], UsageError, r"depth has 2 versions for base nano; say which: depth:1\|2\|latest"),
        (["depth:1", "de/pth"], UsageError, "is not a reference"),
        (["depth:1", "fog"], NotFound, "task 'fog' has no adapter yet"),
    ],
)
def test_versions_are_removed_all_or_none(registry: Registry, add, refs, error, line) -> None:
    add(weights="a"), add(weights="b")
    with pytest.raises(error, match=line):
        registry.adapters.remove(refs)
    assert [row.version for row in registry.adapters.list()] == [1, 2]
    assert [row.ref for row in registry.adapters.remove(["depth:2", "depth:latest", "depth:02"]).rows] == ["depth:2"]
    assert [row.ref for row in registry.adapters.remove(["depth"]).rows] == ["depth:1"]


def test_bundled_adapters_cannot_be_removed(home: Path, bundle: Callable[..., Path]) -> None:
    with Registry.open(home, bundled=bundle(("depth", 1, "d"))) as registry:
        with pytest.raises(Conflict, match="depth:1 comes with CoDi Hub and cannot be removed"):
            registry.adapters.remove(["depth"])
        assert registry.collect() == []
        assert registry.adapters.resolve("depth").bundled


def test_the_runs_of_a_removed_adapter_stay(registry: Registry, add) -> None:
    add()
    registry.runs.finish(registry.runs.start("depth", "depth:1", {}), "ok")
    registry.adapters.remove(["depth"])
    assert [(run.adapter, run.status) for run in registry.runs.list()] == [("depth:1", "ok")]


def test_latest_moves_to_the_user_s_version_when_the_bundle_drops_its_own(
    home: Path, bundle: Callable[..., Path], folder: Callable[[str], Path]
) -> None:
    with Registry.open(home, bundled=bundle(("depth", 1, "d"), ("fog", 1, "f"))) as registry:
        facts = {"base": "nano", "kind": "control", "steps": 4, "parameters": 1, "metrics": {}}
        registry.adapters.add(folder("mine"), task="fog", **facts)
        registry.adapters.tag("fog:1", "latest")
    with Registry.open(home, bundled=bundle(("depth", 1, "d"))) as registry:
        assert registry.adapters.resolve("fog").ref == "fog:2"


# ---- cp


def test_a_copy_shares_the_files(registry: Registry, add, home: Path) -> None:
    source = add(score=2.0, weights="good", metrics={"psnr": 21.0}, parent="depth:9")[0]
    before = _blobs(home)
    times = registry.adapters.file(source, WEIGHTS).stat().st_mtime_ns
    row, created = registry.adapters.copy("depth", "fog")
    assert (row.ref, row.base, row.parent, row.tags, created) == ("fog:1", "nano", "depth:1", ("latest",), True)
    same = ("kind", "steps", "parameters", "metrics", "score", "sha256", "bytes")
    assert [getattr(row, name) for name in same] == [getattr(source, name) for name in same]
    assert registry.adapters.files(row) == registry.adapters.files(source)
    assert (_blobs(home), registry.adapters.file(row, WEIGHTS).stat().st_mtime_ns) == (before, times)
    assert registry.adapters.copy("depth:1", "fog") == (row, False)
    assert registry.adapters.copy("fog", "depth") == (source, False)
    registry.adapters.remove(["depth"])
    assert registry.collect() == []
    assert registry.adapters.file(row, WEIGHTS).read_text() == "good"
    assert registry.adapters.copy("fog", "depth")[0].ref == "depth:2"


def test_a_copy_belongs_to_the_base_of_its_source(registry: Registry, add) -> None:
    add("depth", "sd15")
    add("fog", "nano", weights="weights")
    with pytest.raises(NotFound, match="but for sd15"):
        registry.adapters.copy("depth", "fog")
    row, created = registry.adapters.copy("depth", "fog", "sd15")
    assert (row.ref, row.base, created) == ("fog:1", "sd15", True)


def test_a_copy_that_scores_worse_is_not_the_latest(registry: Registry, add) -> None:
    add(score=1.0, weights="a"), add("fog", score=2.0, weights="b")
    row, _ = registry.adapters.copy("depth", "fog")
    assert (row.ref, row.tags, registry.adapters.resolve("fog").ref) == ("fog:2", (), "fog:1")


def test_the_copy_of_a_bundled_adapter_has_its_own_files(home: Path, bundle: Callable[..., Path]) -> None:
    root = bundle(("depth", 1, "d"))
    with Registry.open(home, bundled=root) as registry:
        row, _ = registry.adapters.copy("depth", "fog")
        path = registry.adapters.file(row, WEIGHTS)
        assert (row.bundled, path.is_relative_to(home), path.read_text()) == (False, True, "d")
        path.chmod(0o644)
        path.write_text("evil")
        registry.adapters.copy("depth", "mist")  # mends it
        assert registry.adapters.file(row, WEIGHTS).read_text() == "d"
        (root / "depth" / WEIGHTS).write_text("x")
        path.unlink()
        with pytest.raises(InvalidInput, match="is not what was registered"):
            registry.adapters.copy("depth", "haze")


def test_a_damaged_adapter_is_not_copied(registry: Registry, add) -> None:
    registry.adapters.file(add()[0], WEIGHTS).unlink()
    with pytest.raises(NotFound, match=r"adapter\.safetensors of depth:1 is missing at"):
        registry.adapters.copy("depth", "fog")
    assert registry.adapters.list("fog") == []


# ---- gc


def test_gc_deletes_exactly_the_files_that_no_adapter_needs(registry: Registry, add, home: Path) -> None:
    kept = add(weights="kept")[0]
    gone = add(weights="gone")[0]
    path = registry.adapters.file(gone, WEIGHTS)
    stray = [home / "blobs" / "tmp" / "half.part", home / ".registry.db.0a.part-wal", home / "backups" / "r.part"]
    others = [home / "distill" / "depth-1" / "run.json", home / "blobs" / "tmp" / "folder" / "x", home / "mine.part"]
    for file in (*stray, *others):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("12345")
    registry.adapters.remove([gone.ref])
    assert [(problem.kind, problem.message) for problem in registry.verify()] == [
        ("orphan", "no adapter needs it; `codi gc` deletes it"),
        ("leftover", "partial file of a killed process; `codi gc` deletes it"),
    ]
    preview = registry.collect(dry_run=True)
    assert path.exists()
    assert all(file.exists() for file in stray)
    assert registry.collect() == preview
    assert sorted((Path(entry.path), entry.bytes, entry.message) for entry in preview) == sorted(
        [(path, 4, "of depth:2 for nano, removed")] + [(file, 5, "partial file of a killed process") for file in stray]
    )
    assert registry.collect() == []
    assert not path.exists()
    assert all(file.exists() for file in others)
    assert registry.adapters.file(kept, WEIGHTS).read_text() == "kept"
    assert registry.verify() == []


def test_gc_is_refused_in_a_store_shared_with_another_database(
    registry: Registry, add, home: Path, nothing_bundled: Path, tmp_path: Path
) -> None:
    row = add()[0]
    line = f"blobs also has files of {re.escape(registry.database.store_key)}, which would be lost"
    url = f"sqlite:///{tmp_path / 'other.db'}"
    with Registry.open(home, url=url, bundled=nothing_bundled) as other, pytest.raises(Conflict, match=line):
        other.collect()
    assert registry.adapters.file(row, WEIGHTS).exists()
    assert registry.collect() == []


def test_a_file_that_cannot_be_deleted_is_a_one_line_error(
    registry: Registry, add, monkeypatch: pytest.MonkeyPatch
) -> None:
    add()
    registry.adapters.remove(["depth"])

    def denied(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(verify.Path, "unlink", denied)
        with pytest.raises(CodiError, match="cannot be deleted: Permission denied; correct that and try again"):
            registry.collect()
    assert len(registry.collect()) == 3


def test_an_adapter_removed_during_verify_is_not_reported_missing(
    registry: Registry, add, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(weights="a"), add(weights="b")
    examine = verify.examine

    def removed_first(*args: object) -> object:
        monkeypatch.setattr(verify, "examine", examine)
        registry.adapters.remove(["depth:1"])
        registry.collect()
        return examine(*args)

    monkeypatch.setattr(verify, "examine", removed_first)
    assert registry.verify() == []
    assert [row.ref for row in registry.adapters.list()] == ["depth:2"]


# ---- a lost database


@pytest.fixture
def real_folder(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that writes an adapter folder whose record names its weights."""

    def make(name: str, *, base: str = "nano") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        save_file({"w": np.full((2, 3), len(name), np.float32), "b": np.frombuffer(name.encode(), np.uint8)},
                  folder / WEIGHTS)  # fmt: skip
        record = AdapterRecord(
            task="depth",
            kind="residual",
            base=BaseRecord(name=base, family="f1" if base == "nano" else "f2", sketch={}),
            prediction_type="epsilon",
            steps=4,
            config={},
            metrics={"psnr": 20.0},
            weights=sha256(folder / WEIGHTS),
        )
        (folder / "adapter.json").write_text(record.to_json())
        return folder

    return make


def _add_folder(registry: Registry, folder: Path, base: str = "nano") -> AdapterRow:
    facts = {"kind": "residual", "steps": 4, "parameters": 7, "metrics": {"psnr": 20.0}, "score": 20.0}
    return registry.adapters.add(folder, task="depth", base=base, **facts)[0]


def _score(record: AdapterRecord) -> float:
    return float(record.metrics["psnr"])


def test_an_older_database_beside_the_store_is_not_the_whole_truth(
    registry: Registry, real_folder, home: Path, backend: str, nothing_bundled: Path
) -> None:
    if backend != "sqlite":
        pytest.skip("the file of the database is replaced")
    _add_folder(registry, real_folder("a"))
    with sqlite3.connect(home / "registry.db") as source, sqlite3.connect(home / "older.db") as copy:
        source.backup(copy)
    names = ["b", "c"]
    rows = [_add_folder(registry, real_folder(name)) for name in names]
    registry.close()
    for suffix in ("-wal", "-shm"):
        (home / f"registry.db{suffix}").unlink(missing_ok=True)
    (home / "older.db").replace(home / "registry.db")
    with Registry.open(home, bundled=nothing_bundled) as opened:
        assert [row.version for row in opened.adapters.list()] == [1]
        with pytest.raises(Conflict, match=r"lacks adapters that are in the store: .* with `codi recover`"):
            opened.collect()
        assert opened.verify()[0].kind == "lost"
        found = opened.adapters.recover(home / "distill", _score)
        assert [(row.ref, row.sha256, row.parameters, row.score) for row in found.rows] == [
            (row.ref, row.sha256, 6 + 1, 20.0) for row in rows
        ]
        assert opened.adapters.recover(home / "distill", _score).rows == ()
        assert opened.verify() == []
        assert opened.collect() == []


def test_a_deleted_database_is_restored_from_the_store_and_the_run_folders(
    registry: Registry, real_folder, home: Path, backend: str, nothing_bundled: Path
) -> None:
    if backend != "sqlite":
        pytest.skip("the file of the database is deleted")
    in_store, on_other_base = real_folder("a"), real_folder("b", base="sd15")
    _add_folder(registry, in_store), _add_folder(registry, on_other_base, "sd15")
    shutil.copytree(real_folder("c"), home / "distill" / "depth-1" / "adapter")
    (home / "distill" / "depth-1" / "adapter" / "README.md").write_text("# card")
    registry.close()
    for path in home.glob("registry.db*"):
        path.unlink()
    (home / "blobs" / "additions.json").unlink()  # as in a store from before additions were counted
    with Registry.open(home, bundled=nothing_bundled) as opened:
        opened.bases.add("nano", "/models/nano", family="f1")
        with pytest.raises(Conflict, match="lacks adapters"):
            opened.collect()
        found = opened.adapters.recover(home / "distill", _score)
        assert {row.sha256 for row in found.rows} == {sha256(in_store / WEIGHTS), sha256(home.joinpath(
            "distill", "depth-1", "adapter", WEIGHTS))}  # fmt: skip
        assert [text.split(",")[0] for text in found.left] == ["depth on base sd15"]
        with pytest.raises(Conflict, match="lacks adapters"):
            opened.collect()
        opened.bases.add("sd15", "runwayml/sd15", family="f2")
        assert [row.base for row in opened.adapters.recover(home / "distill", _score).rows] == ["sd15"]
        assert {row.kind for row in opened.verify()} <= {"orphan"}  # the cards of adapters without a run folder
        opened.collect()
        assert opened.verify() == []


def test_a_removed_adapter_is_not_recovered(registry: Registry, real_folder, home: Path) -> None:
    row = _add_folder(registry, real_folder("a"))
    registry.adapters.remove([row.ref])
    assert registry.adapters.recover(home / "distill", _score).rows == ()
    assert len(registry.collect()) == 2
