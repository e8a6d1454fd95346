"""What happens to files that lie where a run writes, with a real run log."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from folder_runs import run_items
from PIL import Image, ImageOps, PngImagePlugin

from codi_hub import RunOptions
from codi_hub.errors import CodiError, UsageError
from codi_hub.events import Event, Message
from codi_hub.folders.plan import plan
from codi_hub.folders.rows import RegistryLog
from codi_hub.paths import unwritable
from codi_hub.registry import Registry
from codi_hub.reports import RunReport

FOREIGN = "the output exists, and codi did not write it or it was changed since: "


@pytest.fixture
def registry(home: Path) -> Iterator[Registry]:
    with Registry.open(home, bundled=home / "none") as opened:
        yield opened


@pytest.fixture
def go(images: Path, task: Any, copying: Any, tmp_path: Path, registry: Registry) -> Callable[..., RunReport]:
    """Return a function that runs imgs/ into out/: `go(steps=1, prompt="night", overwrite=True)`."""

    def run(*, steps: int = 4, heard: Callable[[Event], object] | None = None, **options: Any) -> RunReport:
        asked = RunOptions(**({"out": tmp_path / "out"} | options))
        items = plan([images], task, asked)
        adapter: Any = SimpleNamespace(ref="double:1", task="double")
        log = RegistryLog(registry.runs, adapter, {"steps": steps}, items)
        names = ("overwrite", "dry_run", "verify_outputs")
        settings = {name: getattr(asked, name) for name in names} | {"batch": 2}
        return run_items(items, task, copying, log=log, on_event=heard or (lambda event: None), **settings)

    return run


def statuses(report: RunReport) -> dict[str, str]:
    return {Path(row["input"]).name: row["status"] for row in report.items}


def changed(report: RunReport) -> dict[str, str]:
    """Return the status, and the error or what is replaced, of each row that was not skipped."""
    rows = [row for row in report.items if row["status"] != "skipped"]
    return {Path(row["input"]).name: row["error"] or row.get("replaces", row["status"]) for row in rows}


def test_the_hash_of_an_output_is_logged_before_it_is_renamed(go, registry, tmp_path, monkeypatch):
    replace, seen = os.replace, {}

    def late(source: Any, target: Any) -> None:
        if Path(target).parent == tmp_path / "out":
            rows = registry.runs.items(1)
            seen[Path(target).name] = [row.output_hash for row in rows if row.output == str(target)]
            if Path(target).name == "b.png":
                raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", late)
    assert changed(go())["b.png"] == "the output cannot be written: Input/output error"
    assert all(len(hashes) == 1 and len(hashes[0]) == 64 for hashes in seen.values())
    (row,) = [row for row in registry.runs.items(1) if row.output.endswith("b.png")]
    assert (row.status, row.output_hash) == ("failed", None)


def test_a_file_that_codi_did_not_write_stays(go, tmp_path):
    mine = tmp_path / "out" / "a.png"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    planned = go(dry_run=True)
    assert planned.items[0]["status"] == "failed"
    assert changed(go())["a.png"].startswith(FOREIGN)
    assert mine.read_bytes() == b"mine"
    assert changed(go(overwrite=True))["a.png"] == "ok"
    assert mine.read_bytes() != b"mine"


def test_an_image_that_was_edited_since_stays(go, tmp_path):
    go()
    edited = tmp_path / "out" / "c.png"
    with Image.open(edited) as image:
        ImageOps.invert(image).save(edited)
    kept = edited.read_bytes()
    report = go(steps=1)
    assert statuses(report) == {name: "failed" if name == "c.png" else "ok" for name in statuses(report)}
    assert edited.read_bytes() == kept


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:60]])
def test_what_is_left_of_an_output_is_made_again(go, tmp_path, damage):
    go()
    output = tmp_path / "out" / "b.png"
    whole = output.read_bytes()
    output.write_bytes(damage(whole))
    heard: list[Event] = []
    assert changed(go(heard=heard.append)) == {"b.png": "damaged"}
    assert Message("Outputs to replace: 1 damaged") in heard
    assert output.read_bytes() == whole
    assert changed(go()) == {}


def test_a_copy_with_another_time_is_compared_by_its_content(go, tmp_path, images):
    go()
    os.utime(tmp_path / "out" / "a.png", (1, 1))
    assert changed(go()) == {}
    (tmp_path / "out").rename(tmp_path / "moved")
    assert changed(go(out=tmp_path / "moved", dry_run=True)) == dict.fromkeys(
        ["a.png", "b.png", "c.png", "d.png", "e.png", "f.png"], "made by another run"
    )


def test_verify_outputs_reads_files_whose_size_and_time_are_as_they_were(go, tmp_path):
    go()
    output = tmp_path / "out" / "a.png"
    stat, data = output.stat(), output.read_bytes()
    output.write_bytes(data[:-20] + bytes(20))
    os.utime(output, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert changed(go()) == {}
    assert list(changed(go(verify_outputs=True))) == ["a.png"]


def test_an_output_made_with_another_prompt_is_announced_before_it_is_replaced(go, images):
    go(prompt="night")
    Image.new("RGB", (8, 8), "white").save(images / "b.png")
    assert changed(go(prompt="night", dry_run=True)) == {"b.png": "made from another input"}
    heard: list[Event] = []
    assert set(changed(go(prompt="fog", heard=heard.append)).values()) == {"made with another prompt"}
    text = "Outputs to replace: 6 made with another prompt; another output folder or a suffix keeps both"
    assert heard[0] == Message(text)
    assert set(changed(go(prompt="fog", steps=1)).values()) == {"made with another adapter or other options"}


def test_records_without_a_hash_count_as_codi_s(go, registry, tmp_path):
    go()
    with registry.database.write() as connection:
        connection.exec_driver_sql("UPDATE run_item SET output_hash = NULL, output_bytes = NULL")
    assert changed(go()) == {}
    (tmp_path / "out" / "a.png").write_bytes(b"")
    assert changed(go(steps=1))["a.png"] == "damaged"


def forget(registry: Registry) -> None:
    with registry.database.write() as connection:
        connection.exec_driver_sql("DELETE FROM run_item")


@pytest.mark.parametrize("ext", ["png", "jpg"])
def test_an_output_that_the_log_does_not_know_is_codi_s_by_its_own_metadata(go, registry, ext):
    go(ext=ext)
    forget(registry)
    assert set(changed(go(ext=ext, dry_run=True)).values()) == {"made by another run"}
    assert go(ext=ext, steps=1).ok == 6


def test_metadata_that_name_another_input_or_nothing_make_no_output_codi_s(go, registry, images, tmp_path):
    go()
    forget(registry)
    out = tmp_path / "out"
    Image.new("RGB", (8, 8), "white").save(images / "a.png")  # no longer the image that a.png was made from
    out.joinpath("b.png").write_bytes(out.joinpath("c.png").read_bytes())
    Image.open(out / "d.png").save(out / "d.png")  # as an editor that drops what it does not know
    refused = {name for name, text in changed(go(dry_run=True)).items() if text.startswith(FOREIGN)}
    assert refused == {"a.png", "b.png", "d.png"}


def test_an_edited_output_that_the_log_knows_stays_whatever_it_says_of_itself(go, tmp_path):
    go()
    edited = tmp_path / "out" / "c.png"
    with Image.open(edited) as image:
        text = PngImagePlugin.PngInfo()
        text.add_text("codi", image.text["codi"])
        ImageOps.invert(image).save(edited, pnginfo=text)
    assert changed(go())["c.png"].startswith(FOREIGN)


def test_a_file_that_comes_while_the_run_computes_stays(go, copying, tmp_path):
    def fails(conditions: Any) -> None:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "a.png").write_bytes(b"mine")
        copying.fails = lambda conditions: None

    copying.fails = fails
    assert changed(go())["a.png"].startswith(FOREIGN)
    assert (tmp_path / "out" / "a.png").read_bytes() == b"mine"


def test_a_link_and_a_folder_are_not_codi_s(go, tmp_path):
    out = tmp_path / "out"
    (out / "a.png").mkdir(parents=True)
    (out / "b.png").symlink_to(tmp_path / "nothing")
    assert [name for name, text in changed(go()).items() if text.startswith(FOREIGN)] == ["a.png", "b.png"]
    assert (out / "b.png").is_symlink()


def test_a_run_that_cannot_be_logged_goes_on_with_one_warning(go, registry, monkeypatch):
    def full(*args: Any, **values: Any) -> int:
        raise CodiError("the disk of the home folder is full")

    monkeypatch.setattr(registry.runs, "add_item", full)
    heard: list[Event] = []
    assert go(heard=heard.append).ok == 6
    texts = [event.text for event in heard if isinstance(event, Message)]
    assert texts == ["Not everything of this run is logged: the disk of the home folder is full"]


def test_an_output_folder_that_cannot_be_written_is_found_before_networks_are_loaded(go, copying, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"^out .*: cannot be written \(Not a directory\): choose another folder$"):
        go(out=tmp_path / "file" / "out")
    assert copying.calls == []
    assert unwritable(tmp_path / "a" / "b") is None


def test_one_folder_that_cannot_be_written_fails_alone(go, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").write_text("")
    report = go()
    assert (report.ok, report.failed) == (4, 2)
    assert changed(report)["e.png"] == "the output folder cannot be written: Not a directory"
