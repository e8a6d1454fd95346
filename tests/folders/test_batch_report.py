"""The report page of a run: its content, escaping, and that it is written whole or not at all."""

import errno
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from folder_runs import MemoryLog, run_items
from PIL import Image

from codi_hub import RunOptions
from codi_hub.errors import CodiError, UsageError
from codi_hub.folders import report as pages
from codi_hub.folders.interrupts import Interrupted
from codi_hub.folders.plan import Item, plan
from codi_hub.folders.report import ReportPage, thumbnail
from codi_hub.reports import RunReport

VOID = {"meta", "link", "img", "input"}
HOSTILE = """</script><script>alert(1)</script> "quoted' onerror=x\n<img src=http://example.org/x> 🙂 {{ 7 * 7 }}"""


class Read(HTMLParser):
    """A parsed page: each tag with its attributes, and the text of every element by class."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[tuple[str, str]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("class") or tag))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.append((self.open[-1][1], data))

    def text(self, of: str) -> list[str]:
        return [data for name, data in self.texts if name == of]

    def count(self, tag: str, **attrs: str) -> int:
        return sum(name == tag and attrs.items() <= found.items() for name, found in self.tags)


@pytest.fixture
def run_page(images, task, copying, tmp_path) -> Callable[..., tuple[Read, RunReport, str]]:
    """Return a function that runs imgs/ and returns the parsed page, the report and the source."""

    def make(**options: Any) -> tuple[Read, RunReport, str]:
        items = plan([images], task, RunOptions(out=tmp_path / "out", prompt=options.pop("prompt", None)))
        page = ReportPage(tmp_path / "pages" / "run.html", items, options.pop("settings", {}))
        report = run_items(items, task, copying, **options)
        page.write(report)
        source = page.path.read_text("utf-8")
        return Read(source), report, source

    return make


def test_every_item_is_on_the_page(run_page, images):
    (images / "cut.png").write_bytes((images / "a.png").read_bytes()[:-30])
    settings = {"seed": 3, "suffix": "", "adapter_sha256": "ab" * 32, "task_options": {"correct": True, "mask": None}}
    page, report, source = run_page(prompt="a tree", settings=settings)
    assert page.text("lead") == [f"6 ok, 1 failed, 0 skipped in {report.seconds:.1f} s"]
    assert page.text("h2") == ["a.png", "b.png", "c.png", "cut.png", "d.png", "sub/e.png", "sub/f.png"]
    assert page.text("status") == ["ok"] * 3 + ["failed"] + ["ok"] * 3
    assert page.text("prompt") == ["a tree"] * 7
    assert page.text("error") == [row["error"] for row in report.items if row["error"]]
    facts = page.text("dd")
    assert facts[:3] == ["3", "ab" * 6, "yes"]
    for row in report.items:
        assert {row["input"], row["output"], str(row["seed"])} <= set(facts)
    assert page.count("input", type="range") == page.count("img") / 2 == 6
    assert page.count("li", **{"class": "item failed plain"}) == 1
    assert re.findall(r"--w:(\d+);--h:(\d+)", source) == [("16", "16")] * 6
    assert page.open == []


def test_a_second_run_shows_the_outputs_of_the_first(run_page):
    log = MemoryLog()
    run_page(log=log)
    page, report, _ = run_page(log=log)
    assert (report.skipped, page.text("status")) == (6, ["skipped"] * 6)
    assert page.count("input", type="range") == 6
    assert page.count("input", type="radio") == 2


def test_names_and_prompts_are_escaped(run_page, images):
    whole = (images / "a.png").read_bytes()
    for name in ("<script>alert(1)<", "\" onload='x'", "new\nline", "🙂"):
        (images / f"{name}.png").write_bytes(whole)
    (images / os.fsdecode(b"\xff.png")).write_bytes(whole)
    page, report, _ = run_page(prompt=HOSTILE, settings={"mask": HOSTILE})
    assert report.ok == 11
    assert page.text("prompt") == [HOSTILE] * 11
    names = {"<script>alert(1)<.png", "\" onload='x'.png", "new\\nline.png", "🙂.png", "\\xff.png"}
    assert names < set(page.text("h2"))
    assert page.count("script") == 1
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert all((attrs["src"] or "").startswith("data:image/webp;base64,") for tag, attrs in page.tags if tag == "img")


def test_errors_are_escaped_even_if_they_are_not_unicode(tmp_path):
    item = Item(str(tmp_path / "a.png"), str(tmp_path / "out.png"), "a.png", 1)
    row = {"input": str(item.input), "output": str(item.output), "status": "failed", "seed": 1, "seconds": 0.0}
    report = RunReport(
        task="<i>", adapter="a:1", steps=1, ok=0, failed=1, skipped=0, seconds=0.0,
        items=[row | {"error": f"{HOSTILE} \udcff"}],
    )  # fmt: skip
    page = ReportPage(tmp_path / "r.html", [item], {})
    page.write(report)
    read = Read(page.path.read_text("utf-8"))
    assert read.text("error") == [f"{HOSTILE} \\udcff"]
    assert (read.text("h1"), read.count("script"), read.count("img")) == (["<i>"], 1, 0)


def test_the_page_loads_nothing(run_page):
    page, _, source = run_page()
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    assert page.count("meta", **{"http-equiv": "Content-Security-Policy", "content": policy}) == 1
    assert "http:" not in source
    assert "https:" not in source


def test_only_the_first_images_are_embedded_and_the_page_notes_it(run_page, monkeypatch):
    monkeypatch.setattr(pages, "MAX_ITEMS", 2)
    page, _, _ = run_page()
    assert (page.count("img"), len(page.text("h2"))) == (4, 6)
    assert page.text("notice") == ["Thumbnails are embedded for the first 2 images."]


def test_thumbnails_are_oriented_small_and_keep_alpha(tmp_path):
    wide = Image.new("RGB", (3000, 1000), "red")
    exif = wide.getexif()
    exif[0x0112] = 6
    wide.save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (8, 4), (9, 9, 9, 0)).save(tmp_path / "clear.png")
    turned, clear = thumbnail(tmp_path / "turned.jpg"), thumbnail(tmp_path / "clear.png")
    assert turned is not None
    assert clear is not None
    assert (turned.width, turned.height, turned.transparent) == (171, 512, False)
    assert (clear.width, clear.height, clear.transparent) == (8, 4, True)


def test_other_files_have_no_thumbnail(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "words.png").write_text("hello")
    (tmp_path / "loop.png").symlink_to("loop.png")
    np.save(tmp_path / "map.npy", np.zeros((4, 4)))
    names = ("pipe.png", "words.png", "loop.png", "map.npy", "nosuch.png")
    assert [thumbnail(tmp_path / name) for name in names] == [None] * 5


def test_an_interrupted_run_has_its_page(images, task, copying, tmp_path):
    items = plan([images], task, RunOptions(out=tmp_path / "out"))
    page = ReportPage(tmp_path / "r.html", items, {})

    def interrupt(conditions: list[np.ndarray]) -> None:
        if len(copying.calls) == 3:
            raise KeyboardInterrupt

    copying.fails = interrupt
    with pytest.raises(Interrupted) as stopped:
        run_items(items, task, copying, batch=1)
    page.write(stopped.value.report)
    read = Read(page.path.read_text())
    assert read.text("h2") == ["a.png", "b.png"]
    assert read.text("notice") == ["Interrupted after 2 of 6 images."]


def test_a_page_that_cannot_be_written_leaves_the_earlier_one(run_page, images, task, tmp_path, monkeypatch):
    _, report, before = run_page()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    page = ReportPage(tmp_path / "pages" / "run.html", plan([images], task, RunOptions(out=tmp_path / "out")), {})
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CodiError) as caught:
        page.write(report)
    line = f"the run is complete (6 ok, 0 failed, 0 skipped), but not its report {page.path}: No space left on device"
    assert str(caught.value) == line
    assert page.path.read_text() == before
    assert os.listdir(page.path.parent) == ["run.html"]


def test_impossible_paths_of_the_page_are_refused_first(images, task, tmp_path):
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file").touch()
    odd = tmp_path / "input.html"
    odd.write_bytes((images / "a.png").read_bytes())
    items = plan([images, odd], task, RunOptions(out=tmp_path / "out.html"))
    taken = "is a folder or an input: choose another file"
    long = f"{'n' * 251}.html"
    for name, why in {
        "a.png": "the name must end in .html",
        "folder.html": taken,
        "out.html": taken,
        "input.html": taken,
        "imgs/../input.html": taken,
        "file/r.html": "cannot be written: File exists",
        long: "cannot be written: File name too long",
    }.items():
        with pytest.raises(UsageError) as caught:
            ReportPage(tmp_path / name, items, {})
        assert str(caught.value).startswith(f"report {tmp_path / name}")
        assert str(caught.value).endswith(why)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.html", "imgs", "input.html"]


@pytest.mark.parametrize("error", [errno.EACCES, errno.ENOENT, errno.EROFS])
def test_a_folder_that_is_not_writable_is_refused_first(tmp_path, monkeypatch, error):
    def refuse(**options: Any) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(UsageError, match=f"r.html cannot be written: {os.strerror(error)}"):
        ReportPage(tmp_path / "r.html", [], {})
