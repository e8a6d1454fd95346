"""Training data from every kind of source, and the errors of bad ones."""

import io
import json
import logging
import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from codi_hub import tasks
from codi_hub.data.sources import DEFAULT_COUNT, Synthetic, open_source
from codi_hub.errors import InvalidInput, NotFound, UsageError

SUPERRES, DEPTH = tasks.load("superres"), tasks.load("depth")


def image(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def ramp(width: int = 48, height: int = 40) -> Image.Image:
    """Encode the column in red and the row in green, so that a crop shows its position."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, 0 * rows], -1).astype(np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images" / "below").mkdir(parents=True)
    for k in range(5):
        image(k).save(tmp_path / "images" / ("below" if k > 3 else "") / f"{k}.png")
    return tmp_path / "images"


def with_metadata(folder: Path, rows: list[dict[str, Any]]) -> str:
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n", "utf-8")
    return str(folder)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("spec", ["leaves", "scenes", "scenes+leaves"])
def test_synthetic_examples(spec: str) -> None:
    source = open_source(spec, SUPERRES, count=4, size=32, seed=5)
    examples = list(source)
    assert len(source) == len(examples) == 4
    assert all(one["image"].shape == (32, 32, 3) and one["image"].dtype == np.uint8 for one in examples)
    assert ["depth" in one for one in examples] == ["scenes" in spec, spec == "scenes"] * 2
    assert same(source[2], examples[2])
    assert not np.array_equal(source[2]["image"], open_source(spec, SUPERRES, count=4, size=32, seed=6)[2]["image"])


def test_synthetic_sources_are_finite_without_a_count() -> None:
    assert len(open_source("leaves", SUPERRES, size=16)) == DEFAULT_COUNT
    with pytest.raises(IndexError):
        Synthetic(("leaves",), 3, 16, 0)[3]


def test_data_without_a_column_that_the_task_needs_is_refused_on_opening() -> None:
    with pytest.raises(InvalidInput, match="task depth needs data with 'depth'; this has caption, image"):
        open_source("leaves", DEPTH, size=16)


def test_crops_of_a_folder_depend_on_seed_and_position(folder: Path) -> None:
    source = open_source(str(folder), SUPERRES, size=16, seed=1)
    assert len(source) == 5
    forwards = [source[k] for k in range(5)]
    again = open_source(str(folder), SUPERRES, size=16, seed=1)
    assert all(same(again[k], forwards[k]) for k in reversed(range(5)))
    assert forwards[0]["image"].shape == (16, 16, 3)
    assert not same(open_source(str(folder), SUPERRES, size=16, seed=2)[0], forwards[0])


def test_more_examples_than_images_repeat_with_other_crops_and_fewer_are_a_subset(folder: Path) -> None:
    more = open_source(str(folder), SUPERRES, count=12, size=16, seed=1)
    assert len(more) == 12
    assert not same(more[0], more[5])
    fewer = [open_source(str(folder), SUPERRES, count=2, size=40, seed=seed) for seed in range(8)]
    assert {len(source) for source in fewer} == {2}
    assert len({source[0]["image"].tobytes() for source in fewer}) > 1


def test_images_are_cropped_without_a_prompt_and_resized_with_one(tmp_path: Path) -> None:
    ramp(96, 64).save(tmp_path / "a.png")
    with_metadata(tmp_path, [{"file_name": "a.png", "condition": "a.png", "text": "words"}])
    cut = open_source(str(tmp_path), SUPERRES, size=32, seed=3)[0]["image"]
    assert (np.ptp(cut[..., 0]), np.ptp(cut[..., 1])) == (31, 31)
    whole = open_source(str(tmp_path), DEPTH, size=32, seed=3)[0]["image"]
    assert np.ptp(whole[..., 1]) > 58


def test_small_images_are_enlarged(tmp_path: Path) -> None:
    ramp(20, 10).save(tmp_path / "a.png")
    enlarged = open_source(str(tmp_path), SUPERRES, size=32)[0]["image"]
    assert enlarged.shape == (32, 32, 3)
    assert np.ptp(enlarged[..., 1]) >= 8


@pytest.mark.parametrize(
    "names", [("file_name", "condition", "text"), ("file_name", "conditioning_image_file_name", "prompt")]
)
def test_folder_of_pairs_keeps_them_aligned(tmp_path: Path, names: tuple[str, str, str]) -> None:
    ramp().save(tmp_path / "a.png")
    ramp().resize((24, 20), Image.Resampling.BOX).save(tmp_path / "a-small.png")
    np.save(tmp_path / "a.npy", np.mgrid[:40, :48][1].astype(np.float32))
    row = dict(zip(names, ("a.png", "a-small.png", "a ramp"), strict=True)) | {"depth": "a.npy"}
    example = open_source(with_metadata(tmp_path, [row]), SUPERRES, size=16, seed=4)[0]
    assert example["caption"] == "a ramp"
    assert np.abs(example["condition"].astype(int) - example["image"]).max() <= 1
    assert np.array_equal(example["depth"], example["image"][..., 0])
    assert example["depth"].dtype == np.float32


def test_edits_in_the_columns_of_instruct_pix2pix(tmp_path: Path) -> None:
    for name, seed in (("before.png", 0), ("after.png", 1)):
        image(seed).save(tmp_path / name)
    row = {"input_image": "before.png", "edit_prompt": "make it noisier", "edited_image": "after.png"}
    example = open_source(with_metadata(tmp_path, [row]), SUPERRES, size=40)[0]
    assert example["edit_prompt"] == "make it noisier"
    assert example["edited"].shape == example["image"].shape
    assert not np.array_equal(example["edited"], example["image"])


def test_unreadable_files_are_skipped_and_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "a.png").write_bytes(b"no picture")
    (folder / "b.jpg").write_bytes(b"")
    (folder / ".hidden.png").write_bytes(b"nobody looks here")
    (folder / "notes.txt").write_text("nor here")
    with caplog.at_level(logging.WARNING, "codi_hub.data"):
        source = open_source(str(folder), SUPERRES, size=16)
    assert len(source) == 5
    assert "skipped 2 of 7 images" in caplog.text


def test_a_file_with_broken_pixels_is_replaced_by_the_next(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:200])
    with caplog.at_level(logging.WARNING, "codi_hub.data"):
        source = open_source(str(folder), SUPERRES, size=40)
        examples = list(source)
    assert len(examples) == 5
    instead = np.asarray(image(2))
    assert any(np.array_equal(examples[1]["image"], instead[:, left : left + 40]) for left in range(9))
    assert list(source.skipped) == [1]
    assert "skipped row 1" in caplog.text


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"file_name": "0.png"\n', "metadata.jsonl line 1 is not JSON"),
        ("[1, 2]\n", "metadata.jsonl line 1 is not a JSON object"),
        ('{"picture": "0.png"}\n', "has no column of images .image, target.*; it has picture"),
        ('{"file_name": "gone.png"}\n', "no readable image in .*gone.png is not a readable image"),
        ("\n", "no readable image in"),
    ],
)
def test_bad_metadata_is_one_line(folder: Path, lines: str, message: str) -> None:
    (folder / "metadata.jsonl").write_text(lines)
    with pytest.raises(InvalidInput, match=message) as caught:
        open_source(str(folder), SUPERRES, size=16)
    assert "\n" not in str(caught.value)


def test_empty_folder_missing_folder_and_other_files(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no readable image in"):
        open_source(str(tmp_path), SUPERRES, size=16)
    for missing in (tmp_path / "gone", tmp_path / "gone.parquet"):
        with pytest.raises(NotFound, match="no folder or file"):
            open_source(str(missing), SUPERRES, size=16)
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(UsageError, match="is not a source of images"):
        open_source(str(tmp_path / "a.txt"), SUPERRES, size=16)


def as_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("typed", [True, False])
def test_parquet_with_images_of_datasets_or_plain_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: bool
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    depth = (np.mgrid[:40, :48][1] * 100).astype(np.uint16)
    cells = [as_bytes(ramp()), as_bytes(Image.fromarray(depth))]
    table = datasets.Dataset.from_dict(
        {"image": [cells[0]] * 2, "depth_map": [cells[1]] * 2, "caption": ["one", "two"], "unused": [1, 2]}
    )
    if typed:
        table = table.cast_column("image", datasets.Image()).cast_column("depth_map", datasets.Image())
    table.to_parquet(str(tmp_path / "data.parquet"))
    source = open_source(str(tmp_path / "data.parquet"), DEPTH, size=40, seed=2)
    assert [one["caption"] for one in source] == ["one", "two"]
    example = source[1]
    assert set(example) == {"image", "depth", "caption"}
    assert np.array_equal(example["depth"], example["image"][..., 0] * np.float32(100))


def test_broken_parquet_and_parquet_without_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(NotFound, match="cannot open the dataset") as caught:
        open_source(str(tmp_path / "bad.parquet"), SUPERRES, size=16)
    assert "\n" not in str(caught.value)
    datasets.Dataset.from_dict({"words": ["a"]}).to_parquet(str(tmp_path / "words.parquet"))
    with pytest.raises(InvalidInput, match=r"has no column of images .*; it has words"):
        open_source(str(tmp_path / "words.parquet"), SUPERRES, size=16)


def test_hub_dataset_takes_the_train_split(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"image": [as_bytes(ramp())], "text": ["from the hub"]})
    asked = []

    def load_dataset(name: str, **where: Any) -> Any:
        asked.append((name, where, datasets.config.HF_HUB_OFFLINE))
        return datasets.DatasetDict({"test": rows.select([]), "train": rows})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert open_source("owner/pictures", SUPERRES, size=16)[0]["caption"] == "from the hub"
    assert asked == [("owner/pictures", {}, True)]  # the tests are offline: the hub is not tried again and again


def test_a_name_that_the_hub_does_not_have_is_refused_without_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    def dataset_info(self: Any, name: str, **options: Any) -> None:
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    with pytest.raises(NotFound) as caught:
        open_source("photoz", SUPERRES, size=16)
    assert str(caught.value) == "no folder or file 'photoz', and no dataset of that name on the hub: check the name"


def test_hub_dataset_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def load_dataset(name: str, **where: str) -> Any:
        raise ConnectionError("cannot reach\nthe hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(NotFound) as caught:
        open_source("owner/pictures", SUPERRES, size=16)
    assert str(caught.value).startswith("no folder or file 'owner/pictures', no earlier download of a dataset of that ")
    assert "\n" not in str(caught.value)


def test_a_pipe_among_the_images_is_skipped(tmp_path: Path) -> None:
    image(1).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert len(open_source(str(tmp_path), SUPERRES, size=16)) == 1


PAIRS = tasks.load("pairs")


def two_folders(root: Path, names: tuple[str, str] = ("condition", "target")) -> Path:
    for k, name in enumerate(names):
        (root / name / "below").mkdir(parents=True)
        for stem in ("0", "1", "below/2"):
            image(10 * k + int(stem[-1])).save(root / name / f"{stem}.{('png', 'bmp')[k]}")
    return root


@pytest.mark.parametrize("names", [("condition", "target"), ("input", "output"), ("A", "B")], ids="/".join)
def test_two_folders_of_the_same_names_are_pairs(tmp_path: Path, names: tuple[str, str]) -> None:
    source = open_source(str(two_folders(tmp_path, names)), PAIRS, size=40)
    assert len(source) == 3
    for k, example in enumerate(source):
        images = [np.asarray(image(10 * j + k)) for j in (0, 1)]
        left = next(x for x in range(9) if np.array_equal(example["image"], images[1][:, x : x + 40]))
        assert np.array_equal(example["condition"], images[0][:, left : left + 40])


@pytest.mark.parametrize("beside", ["c.png", "C/c.png"])
def test_two_folders_beside_other_images_are_single_images(tmp_path: Path, beside: str) -> None:
    two_folders(tmp_path, ("A", "B"))
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / "notes.txt").write_text("notes")
    assert len(open_source(str(tmp_path), SUPERRES, size=16)) == 3
    (tmp_path / beside).parent.mkdir(exist_ok=True)
    image(1).save(tmp_path / beside)
    assert len(open_source(str(tmp_path), SUPERRES, size=16)) == 7


@pytest.mark.parametrize("name", ["colorize", "inpaint"])
def test_a_task_with_conditions_of_its_own_reads_the_images_of_both_folders(tmp_path: Path, name: str) -> None:
    two_folders(tmp_path, ("A", "B"))
    assert len(open_source(str(tmp_path), tasks.load(name), size=16)) == 6


def test_images_without_a_partner_are_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    two_folders(tmp_path)
    image(5).save(tmp_path / "target" / "lonely.png")
    with caplog.at_level(logging.WARNING, "codi_hub.data"):
        assert len(open_source(str(tmp_path), PAIRS, size=16)) == 3
    assert "skipped 1 images without a partner, such as" in caplog.text
    assert "lonely.png" in caplog.text


def test_two_folders_without_a_pair_name_the_first_unpaired_image(tmp_path: Path) -> None:
    two_folders(tmp_path)
    for path in (tmp_path / "target").rglob("*.bmp"):
        path.rename(path.with_stem(path.stem + "_out"))
    with pytest.raises(
        InvalidInput, match=r"no image in .*condition has the name of one in .*target .*condition/0.png"
    ):
        open_source(str(tmp_path), PAIRS, size=16)


def test_pairs_use_whole_images_unless_crop_is_set(tmp_path: Path) -> None:
    for name in ("A", "B"):
        (tmp_path / name).mkdir()
        ramp(96, 64).save(tmp_path / name / "a.png")
    assert np.ptp(open_source(str(tmp_path), PAIRS, size=32)[0]["image"][..., 1]) > 58
    cropped = open_source(str(tmp_path), tasks.load("pairs", {"crop": True}), size=32)
    assert np.ptp(cropped[0]["image"][..., 1]) == 31


def test_captions_beside_images_are_read(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "0.TXT").write_text("a red ball\n")
    (folder / "below" / "4.txt").write_text("a blue box")
    (folder / "nothing.txt").write_text("x")
    (folder / "1.txt").write_bytes(b"\xff")
    with caplog.at_level(logging.WARNING):
        source = open_source(str(folder), SUPERRES, size=16)
    assert [example.get("caption") for example in source] == ["a red ball", None, None, None, "a blue box"]
    assert "1 text files belong to no image, such as nothing.txt" in caplog.text
    assert "1.png: the prompt beside it, 1.txt, is not UTF-8 text" in caplog.text


def test_a_pair_has_the_caption_of_its_target_and_else_of_its_condition(tmp_path: Path) -> None:
    for side in ("condition", "target"):
        (tmp_path / side).mkdir()
        for name in ("é", "b"):
            spelling = unicodedata.normalize("NFD" if side == "target" else "NFC", name)
            image(1).save(tmp_path / side / f"{spelling}.png")
            (tmp_path / side / f"{spelling}.txt").write_text(f"{side} {name}")
    (tmp_path / "target" / "b.txt").unlink()
    source = open_source(str(tmp_path), tasks.load("pairs"), size=16)
    assert {example["caption"] for example in source} == {"target é", "condition b"}


def test_metadata_of_every_folder_with_names_from_windows(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with_metadata(folder, [{"file_name": "0.PNG", "text": "zero"}, {"file_name": "sub\\9.png", "text": "gone"}])
    with_metadata(folder / "below", [{"file_name": ".\\4.png", "text": "four"}])
    with caplog.at_level(logging.WARNING):
        source = open_source(str(folder), SUPERRES, size=16)
    assert [example["caption"] for example in source] == ["zero", "four"]
    assert "skipped 1 of 3 images: " in caplog.text
    assert "3 images have no line in metadata.jsonl, such as " in caplog.text


@pytest.mark.parametrize(("size", "fits"), [((48, 40), True), ((12, 10), True), ((7, 6), True), ((40, 48), False)])
def test_pairs_of_unequal_shape_are_named_and_not_stretched(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, size: tuple[int, int], fits: bool
) -> None:
    for k, shape in enumerate((size, (48, 40))):
        image(k, *shape).save(tmp_path / f"c{k}.png")
        image(9).save(tmp_path / f"t{k}.png")
    with_metadata(tmp_path, [{"file_name": f"t{k}.png", "condition": f"c{k}.png"} for k in range(2)])
    with caplog.at_level(logging.WARNING):
        assert len(open_source(str(tmp_path), tasks.load("pairs"), size=16)) == 1 + fits
    said = f"c0.png measures {size[0]}x{size[1]} and {tmp_path}/t0.png 48x40: give them one shape"
    assert (said in caplog.text) != fits


def test_a_photograph_on_its_side_has_the_shape_of_its_upright_pair(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image(0, 40, 48).save(tmp_path / "c.png", exif=exif)
    image(1, 48, 40).save(tmp_path / "t.png")
    with_metadata(tmp_path, [{"file_name": "t.png", "condition": "c.png"}])
    assert open_source(str(tmp_path), tasks.load("pairs"), size=16)[0]["condition"].shape == (16, 16, 3)
