"""Prompts of images: their sources, their precedence, and the errors of prompts that cannot be used."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from folder_runs import MemoryLog, run_items
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from codi_hub import RunOptions
from codi_hub.errors import InvalidInput, UsageError
from codi_hub.folders.plan import plan
from codi_hub.images.sidecars import MAX_BYTES


def write_metadata(folder: Path, *rows: dict[str, Any]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


@pytest.fixture
def prompts(task, tmp_path: Path) -> Callable[..., dict[str, str | None]]:
    def planned(*inputs: Path, **options: Any) -> dict[str, str | None]:
        items = plan(list(inputs), task, RunOptions(out=tmp_path / "out", **options))
        return {item.name: item.prompt for item in items}

    return planned


def test_the_option_comes_before_metadata_and_metadata_before_the_sidecar(images, prompts):
    write_metadata(images, {"file_name": "a.png", "prompt": "listed"}, {"file_name": "sub/e.png", "text": "below"})
    for name in ("a", "b", "sub/f"):
        (images / f"{name}.txt").write_text("  beside\n")
    own = {"a.png": "listed", "b.png": "beside", "c.png": None, "d.png": None, "sub/e.png": "below"}
    assert prompts(images) == own | {"sub/f.png": "beside"}
    assert set(prompts(images, prompt=" typed ").values()) == {"typed"}
    assert set(prompts(images, prompt="").values()) == {None}


def test_one_image_alone_has_the_prompt_it_has_in_its_folder(images, prompts):
    write_metadata(images, {"file_name": "./a.png", "caption": "listed"})
    (images / "b.txt").write_text("beside")
    assert prompts(images / "a.png", images / "b.png") == {"a.png": "listed", "b.png": "beside"}


@pytest.mark.parametrize("key", ["prompt", "edit_prompt", "instruction", "text", "caption"])
def test_every_name_that_a_prompt_may_have(images, prompts, key):
    write_metadata(images, {"file_name": "a.png", key: "words", "depth": "a.npy"}, {"file_name": "b.png", key: None})
    found = prompts(images)
    assert (found["a.png"], found["b.png"]) == ("words", None)


def test_an_instruction_comes_before_a_caption(images, prompts):
    write_metadata(images, {"file_name": "a.png", "caption": "a house", "edit_prompt": "make it red"})
    assert prompts(images)["a.png"] == "make it red"


def test_no_prompt_is_read_for_a_task_that_uses_none(images, prompts, task):
    task.uses_prompt = False
    (images / "metadata.jsonl").write_text("no JSON")
    (images / "a.txt").write_text("beside")
    assert set(prompts(images).values()) == {None}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON: "),
        ("[" * 100_000, "line 2 is not JSON: "),
        ("[1]", r"line 2 is not a JSON object: \[1\]$"),
        ('{"prompt": "x"}', "line 2 has no file_name: write "),
        ('{"file_name": "b.png", "prompt": ["x"]}', r"line 2: prompt is \['x'\], not text$"),
        ('{"file_name": "b.png", "prompt": "\\ud800"}', "line 2: prompt is not UTF-8 text$"),
        ('{"file_name": "b.png", "prompt": "\\u0000"}', "line 2: prompt is not text: it contains zero bytes"),
        ('{"file_name": "b.png", "text": "%s"}' % ("x" * 20_000), "line 2: text has 20000 bytes, over the limit of"),
        ('{"file_name": "a.png", "prompt": "other"}', "line 2 gives a.png a second prompt: keep one line for it$"),
    ],
)
def test_a_wrong_line_is_refused_before_anything_runs(images, prompts, line, message):
    (images / "metadata.jsonl").write_text('{"file_name": "a.png", "prompt": "x"}\n' + line + "\n")
    with pytest.raises(InvalidInput, match=rf"^{images}/metadata.jsonl {message}") as caught:
        prompts(images)
    assert "\n" not in str(caught.value)
    assert set(prompts(images, prompt="typed").values()) == {"typed"}  # it is not read then


def test_metadata_with_a_byte_order_mark_blank_lines_and_line_separators(images, prompts):
    row = json.dumps({"file_name": "a.png", "prompt": "one\u2028two"}, ensure_ascii=False)
    (images / "metadata.jsonl").write_text(f"\ufeff\r\n{row}\r\n\r\n", "utf-8")
    assert prompts(images)["a.png"] == "one\u2028two"


def test_names_that_are_not_utf8(images, prompts):
    name = os.fsdecode(b"\xff.png")
    Image.new("RGB", (8, 8)).save(images / "x.png")
    (images / "x.png").rename(images / name)
    (images / "metadata.jsonl").write_bytes(b'{"file_name": "\xff.png", "prompt": "odd"}\n')
    assert prompts(images)[name] == "odd"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b"x" * (MAX_BYTES + 1), f"has {MAX_BYTES + 1} bytes, over the limit of {MAX_BYTES}"),
        (b"a\0b", "is not text: it contains zero bytes"),
        (None, "is not a regular file"),
    ],
)
def test_a_sidecar_that_cannot_be_used_is_one_failed_row(images, task, copying, tmp_path, content, why):
    (images / "b.txt").write_bytes(b"\xef\xbb\xbfa prompt from Notepad \r\n")
    if content is None:
        os.mkfifo(images / "a.txt")
    else:
        (images / "a.txt").write_bytes(content)
    items = plan([images], task, RunOptions(out=tmp_path / "out"))
    report = run_items(items, task, copying)
    assert (report.ok, report.failed) == (5, 1)
    assert f"the prompt beside it, a.txt, {why}" in report.items[0]["error"]
    assert report.items[1]["prompt"] == "a prompt from Notepad"
    assert "prompt" not in report.items[2]


def test_each_image_of_a_batch_has_its_own_prompt(images, task, copying, tmp_path):
    (images / "a.txt").write_text("one")
    (images / "c.txt").write_text("two")
    log = MemoryLog()
    items = plan([images], task, RunOptions(out=tmp_path / "out"))
    run_items(items, task, copying, batch=4, log=log)
    assert [prompts for _, prompts, _ in copying.calls] == [["one", "", "two", ""], ["", ""]]
    rows = sorted(log.rows, key=lambda row: row["input"])  # written by several threads
    assert [row.get("prompt") for row in rows] == ["one", None, "two", None, None, None]


def test_a_task_that_needs_prompts_names_the_images_without_one(images, task, prompts):
    task.needs_prompt = True
    (images / "a.txt").write_text("one")
    (images / "d.txt").write_bytes(b"\xff")  # a failed row, and not a refused run
    with pytest.raises(UsageError) as caught:
        prompts(images)
    assert str(caught.value) == (
        f"task double needs a prompt for every image; without one: {images / 'b.png'}, {images / 'c.png'}, "
        f"{images / 'sub' / 'e.png'} and 1 more. "
        "Give one prompt for all images, a line in metadata.jsonl, or NAME.txt beside NAME.png"
    )
    with pytest.raises(UsageError, match="without one: "):
        prompts(images, prompt="  ")
    for name in ("b", "c", "sub/e", "sub/f"):
        (images / f"{name}.txt").write_text("one")
    assert prompts(images)["sub/f.png"] == "one"


def test_an_image_whose_prompt_became_unusable_is_not_skipped(images, task, copying, tmp_path):
    log = MemoryLog()
    (images / "a.txt").write_text("a tree")
    assert run_items(plan([images], task, RunOptions(out=tmp_path / "out")), task, copying, log=log).ok == 6
    (images / "a.txt").write_bytes(b"\xff")
    again = run_items(plan([images], task, RunOptions(out=tmp_path / "out")), task, copying, log=log)
    assert [row["status"] for row in again.items] == ["failed"] + ["skipped"] * 5


def text_of_any_kind() -> st.SearchStrategy[bytes]:
    """Bytes, and lines that are nearly right."""
    value = st.none() | st.integers() | st.floats() | st.text(max_size=8) | st.lists(st.integers(), max_size=2)
    value |= st.sampled_from(["a.png", "../../etc/passwd", "\ud800", "\0", "\x9b2J", "\n"])
    keys = st.sampled_from(["file_name", "prompt", "text"]) | st.text(max_size=4)
    line = st.dictionaries(keys, value, max_size=4).map(lambda row: json.dumps(row).encode())
    return st.lists(line | st.binary(max_size=40), max_size=4).map(b"\n".join)


@pytest.mark.slow
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=text_of_any_kind())
def test_any_bytes_in_metadata_and_sidecars(images, prompts, content):
    for name, what in (("metadata.jsonl", content), ("a.txt", content)):
        (images / name).write_bytes(what)
    found: dict[str, str | None] = {}
    message = ""
    try:
        found = prompts(images)
    except InvalidInput as error:
        message = str(error)
    assert message.isprintable()
    assert bool(message) != (found.keys() == {"a.png", "b.png", "c.png", "d.png", "sub/e.png", "sub/f.png"})
    assert all(prompt is None or prompt.strip() == prompt != "" for prompt in found.values())
