"""Tar and parquet shards: rows, columns by name, damaged and hostile tars, and memory that does not grow with them."""

import io
import json
import logging
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from codi_hub import tasks
from codi_hub.data.columns import named_columns
from codi_hub.data.shards import Tars
from codi_hub.data.sources import absolute, open_source
from codi_hub.errors import InvalidInput, NotFound, UsageError

SUPERRES, DEPTH = tasks.load("superres"), tasks.load("depth")


def png(value: int, side: int = 24) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def write(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def values(spec: str | Path, **options: object) -> list[int]:
    source = open_source(str(spec), SUPERRES, size=16, **options)
    return [int(source[k]["image"][0, 0, 0]) for k in range(len(source))]


def test_rows_of_several_tars_in_the_order_of_their_names(tmp_path: Path) -> None:
    write(tmp_path / "b.tar", {"x/0.png": png(30), "x/0.txt": b"three"})
    write(tmp_path / "a.tar", {"0.txt": b"one\n", "0.jpg": png(10), "1.json": b'{"text": "two"}', "1.png": png(20)})
    assert values(tmp_path / "*.tar") == [10, 20, 30]
    assert values(tmp_path / "b.tar") == [30]
    rows = Tars("shards", [tmp_path / "a.tar", tmp_path / "b.tar"])
    assert [row.get("caption") or row["text"] for row in rows] == ["one", "two", "three"]
    assert [len(rows[1:]), rows.images] == [2, {"png", "jpg", "image"}]


def test_columns_of_a_tar_are_found_by_name_or_named(tmp_path: Path) -> None:
    members = {"0.condition.png": png(1), "0.image.png": png(2), "0.second.png": png(3), "0.json": b'{"words": "w"}'}
    spec = str(write(tmp_path / "a.tar", members))

    def first(columns: str) -> list[object]:
        example = open_source(spec, SUPERRES, size=16, columns=columns)[0]
        return [int(example["condition"][0, 0, 0]), int(example["image"][0, 0, 0]), example.get("caption")]

    assert first("") == [1, 2, None]
    assert first("condition=image, image=second.png, text=words") == [2, 3, "w"]
    with pytest.raises(InvalidInput, match=r"data.columns image=words: .* has no such column; it has condition, "):
        first("image=words")


def test_texts_never_stand_for_images(tmp_path: Path) -> None:
    Image.new("RGB", (24, 24), "red").save(tmp_path / "secret.png")
    path = json.dumps({"condition": str(tmp_path / "secret.png"), "image": str(tmp_path / "secret.png")}).encode()
    members = {"0.json": path, "0.png": png(1), "1.json": path, "1.condition.txt": path, "1.condition.png": png(2)}
    rows = Tars("shard", [write(tmp_path / "a.tar", members)])
    assert all(isinstance(row.get(name, b""), bytes) for row in rows for name in ("image", "condition"))
    source = open_source(str(tmp_path / "a.tar"), SUPERRES, size=16)
    assert "condition" not in source[0]


def test_links_and_cut_off_members_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.tar", {"0.png": png(10), "1.png": png(20), "2.png": png(30, 200)})
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("../../3.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    with caplog.at_level(logging.WARNING, "codi_hub.data"):
        assert values(path) == [10, 20, 30]
    assert "left out 1 members: a.tar: ../../3.png is not a regular file" in caplog.text
    with tarfile.open(path) as tar:
        last = tar.getmember("2.png")
    path.write_bytes(path.read_bytes()[: last.offset_data + 10])
    caplog.clear()
    assert values(path) == [10, 20]
    assert "2.png is cut off" in caplog.text


def test_what_follows_a_damaged_header_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.tar", {"0.png": png(10), "1.png": png(20)})
    with tarfile.open(path) as tar:
        place = tar.getmember("1.png").offset
    data = bytearray(path.read_bytes())
    data[place : place + 8] = b"\xff" * 8
    path.write_bytes(data)
    assert values(path) == [10]
    assert f"a.tar: damaged (bad header at byte {place}" in caplog.text
    path.write_bytes(b"no tar at all" * 100)
    with pytest.raises(InvalidInput, match=r"no image in .*a\.tar: a\.tar: damaged"):
        open_source(str(path), SUPERRES, size=16)


def test_unreadable_rows_are_replaced_by_the_next(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = {
        "0.png": b"GIF89a no",
        "1.png": png(20),
        "2.json": b"{",
        "2.png": png(30),
        "3.txt": b"\xff",
        "3.png": b"",
    }
    assert values(write(tmp_path / "a.tar", members)) == [20, 20, 20, 20]
    assert "skipped row 0, 9 bytes is not a readable image" in caplog.text
    assert "skipped row 2, a.tar: a .json that cannot be read" in caplog.text


def test_a_file_that_shrinks_is_an_error_of_its_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", {"0.png": png(10), "1.png": png(20)})
    rows = Tars("shard", [path])
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(InvalidInput, match="is shorter than it was"):
        rows[1]
    path.unlink()
    with pytest.raises(InvalidInput, match="No such file"):
        rows[0]


def test_patterns_and_compressed_tars_are_named_in_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound, match=r"no file matches '.*\*\.tar'"):
        open_source(str(tmp_path / "*.tar"), SUPERRES, size=16)
    with pytest.raises(NotFound, match=r"no folder or file '.*gone\.tar'"):
        open_source(str(tmp_path / "gone.tar"), SUPERRES, size=16)
    with pytest.raises(UsageError, match="a compressed tar cannot be read by place"):
        open_source(str(tmp_path / "a.tar.gz"), SUPERRES, size=16)
    monkeypatch.chdir(tmp_path)
    assert absolute("shards/*.tar") == f"{tmp_path}/shards/*.tar"


def test_columns_are_checked(tmp_path: Path) -> None:
    assert named_columns("image=jpg, text = words") == {"image": "jpg", "caption": "words"}
    for wrong, message in {
        "picture=jpg": "with a field of image",
        "image": "write FIELD=",
        "text=a,caption=b": "twice",
    }.items():
        with pytest.raises(UsageError, match=message):
            named_columns(wrong)
    Image.new("RGB", (24, 24)).save(tmp_path / "a.png")
    for spec in ("leaves", str(tmp_path)):
        with pytest.raises(UsageError, match=r"data\.columns"):
            open_source(spec, SUPERRES, size=16, columns="image=a")


def test_parquet_shards_with_named_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for k in range(2):
        rows = {"photo": [png(10 + k), png(20 + k)], "words": ["a", "b"]}
        datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / f"{k}.parquet"))
    pattern = str(tmp_path / "*.parquet")
    assert values(pattern, columns="image=photo,text=words") == [10, 20, 11, 21]
    with pytest.raises(InvalidInput, match=r"it has photo, words: name one with columns image=NAME"):
        open_source(pattern, SUPERRES, size=16)


def test_the_index_takes_little_memory(tmp_path: Path) -> None:
    data, count = png(1), 2000
    path = write(tmp_path / "a.tar", {f"{k:05}.{end}": data for k in range(count) for end in ("png", "condition.png")})
    tracemalloc.start()
    rows = Tars("shard", [path])
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(rows) == count
    assert kept < 100 * count  # a TarInfo alone would take more
