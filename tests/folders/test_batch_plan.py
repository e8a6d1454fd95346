"""Planning: items, their outputs, and what is refused before anything runs."""

import hashlib
import os
from pathlib import Path

import pytest
from folder_runs import Double
from PIL import Image

from codi_hub import RunOptions
from codi_hub.errors import NotFound, UsageError
from codi_hub.events import Event, Message
from codi_hub.folders.plan import plan
from codi_hub.folders.walk import walk
from codi_hub.seeds import image_seed


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_a_folder_is_mirrored_beside_itself(images, task):
    items = plan([images], task, RunOptions())
    out = images.with_name("imgs_double")
    assert [item.name for item in items] == ["a.png", "b.png", "c.png", "d.png", "sub/e.png", "sub/f.png"]
    assert [item.output for item in items] == [out / item.name for item in items]
    assert [item.input for item in items] == [images / item.name for item in items]


def test_the_registered_name_names_the_folder(images, task):
    assert plan([images], task, RunOptions(), task_name="mine")[0].output.parent == images.with_name("imgs_mine")


@pytest.mark.parametrize(
    ("name", "options", "output"),
    [
        ("a.png", {}, "a.png"),
        ("a.PNG", {}, "a.png"),
        ("a.jpg", {}, "a.jpg"),
        ("a.JPEG", {}, "a.jpg"),
        ("a.webp", {}, "a.png"),
        ("a.b.tiff", {"suffix": "_x4"}, "a.b_x4.png"),
        ("a.webp", {"ext": "jpg"}, "a.jpg"),
        ("m.npy", {}, "m.png"),
        ("-rf.png", {}, "-rf.png"),
        ("line\nbreak 🙂.png", {}, "line\nbreak 🙂.png"),
    ],
)
def test_the_name_of_an_output(tmp_path, task, name, options, output):
    touch(tmp_path / "in" / name)
    (item,) = plan([tmp_path / "in"], task, RunOptions(out=tmp_path / "out", **options))
    assert item.output == tmp_path / "out" / output


def test_alpha_forces_png(tmp_path, task):
    Image.new("RGBA", (4, 4)).save(tmp_path / "clear.webp")
    Image.new("RGB", (4, 4)).save(tmp_path / "solid.webp")
    items = plan([tmp_path], task, RunOptions(out=tmp_path / "out", ext="jpg"))
    assert [item.output.name for item in items] == ["clear.png", "solid.jpg"]


def test_seeds_come_from_the_relative_name_alone(images, task, tmp_path):
    expected = int.from_bytes(hashlib.sha256(b"7/sub/e.png").digest()[:8], "big") >> 1
    assert image_seed(7, "sub/e.png") == expected
    options = RunOptions(out=tmp_path / "x", seed=7)
    assert {item.name: item.seed for item in plan([images], task, options)}["sub/e.png"] == expected
    moved = images.rename(tmp_path / "elsewhere")
    assert {item.name: item.seed for item in plan([moved], task, options)}["sub/e.png"] == expected
    assert len({item.seed for item in plan([moved], task, RunOptions())}) == 6


def test_single_files(images, task, tmp_path):
    (item,) = plan([images / "a.png"], task, RunOptions())
    assert item.output == images / "a_double" / "a.png"
    assert (item.name, item.seed) == ("a.png", image_seed(0, "a.png"))
    assert plan([images / "a.png"], task, RunOptions(out=tmp_path / "o"))[0].output == tmp_path / "o" / "a.png"
    assert plan([images / "a.png"], task, RunOptions(out=tmp_path / "big.jpg"))[0].output == tmp_path / "big.jpg"


def test_the_folder_one_is_in(images, task, monkeypatch):
    monkeypatch.chdir(images)
    item = plan([Path(".")], task, RunOptions())[0]
    assert item.output == images.with_name("imgs_double") / "a.png"
    assert str(item.input) == "a.png"


def test_sidecars_hidden_files_and_other_types_are_not_items(images, task):
    touch(images / "a.mask.png", images / ".hidden.png", images / ".git" / "x.png", images / "notes.txt")
    assert len(plan([images], task, RunOptions())) == 6
    assert len(plan([images], task, RunOptions(recursive=False))) == 4
    files = [images / "a.png", images / "a.mask.png"]
    assert [item.name for item in plan(files, task, RunOptions(out=images / "o"))] == ["a.png"]


def test_an_output_folder_inside_an_input_is_not_walked(images, task):
    touch(images / "out" / "old.png", images / "sub" / "e_double" / "old.png")
    names = [item.name for item in plan([images, images / "sub" / "e.png"], task, RunOptions())]
    assert "sub/e_double/old.png" not in names
    assert "out/old.png" in names
    assert "out/old.png" not in [item.name for item in plan([images], task, RunOptions(out=images / "out"))]


def test_links(tmp_path, task):
    root = tmp_path / "in"
    touch(root / "real" / "a.png", tmp_path / "other" / "b.png")
    for name, target in {
        "again": root / "real",  # inside: walked already
        "loop": root,
        "real/up": tmp_path,  # contains the input
        "outside": tmp_path / "other",
        "twice": tmp_path / "other",
        "file.png": tmp_path / "other" / "b.png",
        "self.png": root / "self.png",
        "broken.png": tmp_path / "nothing.png",
    }.items():
        (root / name).symlink_to(target)
    (tmp_path / "other" / "back").symlink_to(root)
    found = [item.name for item in plan([root], task, RunOptions())]
    assert found == ["broken.png", "file.png", "self.png", "outside/b.png", "real/a.png"]


def test_a_folder_that_cannot_be_listed_is_one_failed_item(images, task, monkeypatch):
    real = os.scandir

    def scandir(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    items = plan([images], task, RunOptions())
    assert [item.error for item in items] == [None] * 4 + ["this folder cannot be listed: Permission denied"]


def test_a_folder_named_like_an_image_is_walked(tmp_path):
    touch(tmp_path / "x.png" / "y.png")
    assert list(walk(tmp_path)) == [("x.png/y.png", None)]


@pytest.mark.slow
def test_a_deep_tree(tmp_path, task):
    folders = [tmp_path.joinpath(*["d"] * depth) for depth in range(1, 1050)]
    for folder in folders:
        folder.mkdir()
    touch(folders[-1] / "a.png")
    items = plan([tmp_path], task, RunOptions(out=tmp_path / "out"))
    (folders[-1] / "a.png").unlink()
    for folder in reversed(folders):  # or else pytest's cleanup recurses too deep
        folder.rmdir()
    assert [item.name for item in items] == ["d/" * 1049 + "a.png"]


def outputs(inputs: list[Path], task: Double, out: Path, **options: str) -> dict[str, str]:
    heard: list[Event] = []
    items = plan(inputs, task, RunOptions(out=out, **options), on_event=heard.append)
    assert len(heard) == 1
    return {str(item.input.relative_to(out.parent)): item.output.relative_to(out).as_posix() for item in items}


def test_inputs_of_one_stem_get_their_extensions(tmp_path, task):
    touch(*(tmp_path / "in" / name for name in ("a.png", "a.webp", "a.PNG", "b.webp", "b.bmp", "c.png")))
    assert outputs([tmp_path / "in"], task, tmp_path / "out") == {
        "in/a.PNG": "a.PNG.png",
        "in/a.png": "a.png",
        "in/a.webp": "a.webp.png",
        "in/b.bmp": "b.bmp.png",
        "in/b.webp": "b.webp.png",
        "in/c.png": "c.png",
    }
    assert outputs([tmp_path / "in"], task, tmp_path / "out", suffix="_x4")["in/a.webp"] == "a.webp_x4.png"


def test_inputs_of_one_name_get_their_folders(tmp_path, task):
    touch(*(tmp_path / name for name in ("cats/1.png", "cats/2.png", "dogs/1.png", "dogs/sub/3.png", "old/cats/1.png")))
    out = tmp_path / "out"
    expected = {"cats/1.png": "cats/1.png", "cats/2.png": "2.png", "dogs/1.png": "dogs/1.png"}
    assert outputs([tmp_path / "cats", tmp_path / "dogs"], task, out) == expected | {"dogs/sub/3.png": "sub/3.png"}
    files = [tmp_path / "cats" / "1.png", tmp_path / "dogs" / "1.png"]
    assert outputs(files, task, out) == {"cats/1.png": "cats/1.png", "dogs/1.png": "dogs/1.png"}
    found = outputs([tmp_path / "cats", tmp_path / "old" / "cats"], task, out)
    assert len(set(found.values())) == 3
    assert found["old/cats/1.png"] == "old/cats/1.png"


def test_files_that_codi_made_from_others_of_the_folder_are_left_out(images, task):
    touch(images / "sub_double" / "e.png", images / "maps" / "f.png")
    log = {
        str(images / "sub_double" / "e.png"): str(images / "sub" / "e.png"),
        str(images / "maps" / "f.png"): "/elsewhere/f.png",
        str(images / "a.png"): f"{images}-before/a.png",
    }
    heard: list[Event] = []
    origins = lambda outputs: {path: log[path] for path in outputs if path in log}  # noqa: E731
    items = plan([images], task, RunOptions(), origins=origins, on_event=heard.append)
    names = [item.name for item in items]
    assert "sub_double/e.png" not in names
    assert {"a.png", "maps/f.png"} <= set(names)
    assert heard == [Message(f"Left out: 1 images in {images} that codi made from others there")]
    below = plan([images / "sub_double"], task, RunOptions(), origins=origins)
    assert [item.name for item in below] == ["e.png"]


def refusals(images: Path) -> dict[str, tuple[list[Path], Path | None, dict[str, str], type[Exception], str]]:
    a = images / "a.png"
    return {
        "missing": ([images / "no"], None, {}, NotFound, "no such file or folder: "),
        "endless name": ([images / ("n" * 5000)], None, {}, NotFound, "no such file or folder: "),
        "empty": ([images / "empty"], None, {}, UsageError, "no images in "),
        "same twice": ([images, images], None, {}, UsageError, "twice: give it once, or with another suffix"),
        "in place": ([images], images, {}, UsageError, "is the input"),
        "over itself": ([a], images, {}, UsageError, "would replace the input"),
        "out is a file": ([images], images / "notes", {}, UsageError, "is a file: name a folder"),
        "out of another type": (
            [a],
            images / "x.bmp",
            {},
            UsageError,
            r"^out .*x.bmp: an image is written as png",
        ),
        "a file for a folder": ([images], images / "x.png", {}, UsageError, r"^out .*x.png: the name of one image"),
        "suffix": ([images], None, {"suffix": "/../x"}, UsageError, "path separator"),
        "ext": ([images], None, {"ext": "exe"}, UsageError, "one of auto, png, jpg, tif"),
    }


@pytest.mark.parametrize("case", list(refusals(Path())))
def test_refused_before_anything_runs(images, task, case):
    touch(images / "twins" / "t.webp", images / "twins" / "t.png", images / "empty" / "n.txt", images / "notes")
    inputs, out, options, kind, message = refusals(images)[case]
    with pytest.raises(kind, match=message) as caught:
        plan(inputs, task, RunOptions(out=out, **options))
    assert "\n" not in str(caught.value)


def test_a_name_that_is_not_utf8(tmp_path, task):
    try:
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (item,) = plan([tmp_path / "in"], task, RunOptions())
    assert item.seed == int.from_bytes(hashlib.sha256(b"0/\xff.png").digest()[:8], "big") >> 1


def test_the_seed_of_one_image_can_be_given_back(images, task, tmp_path):
    reported = plan([images], task, RunOptions(out=tmp_path / "out"))[-1]
    options = RunOptions(out=tmp_path / "out", image_seed=reported.seed)
    (item,) = plan([reported.input], task, options)
    assert (item.name, item.seed) == ("f.png", reported.seed)
    with pytest.raises(UsageError, match="image_seed is of one image, and there are 6"):
        plan([images], task, options)


@pytest.mark.parametrize(
    "name", ["a.png", "A.JPG", "a.b.png", "sub.d/a.png", "sub/a b.png", "..a.png", "a..png", "İ.PNG"]
)
def test_outputs_are_named_as_pathlib_names_them(tmp_path, task, name):
    """Plans hold texts, which are cut without pathlib: a million paths would take gigabytes."""
    source = tmp_path / "in" / name
    source.parent.mkdir(parents=True)
    source.touch()
    (item,) = plan([source], task, RunOptions(out=tmp_path / "out", suffix="_x", ext="tif"))
    assert item.output == tmp_path / "out" / f"{source.stem}_x.tif"
    assert (item.input, item.name) == (source, source.name)
