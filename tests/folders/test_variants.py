"""Several images of one input: their seeds and names, in plans, resumed runs, jobs and the library."""

import json
from pathlib import Path
from typing import Any

import pytest
from folder_runs import run_items
from PIL import Image

from codi_hub import RunOptions, seeds
from codi_hub.errors import UsageError
from codi_hub.folders.plan import Item, plan
from codi_hub.hub import Hub

ONE_STEP = {"steps": 1, "device": "cpu"}


def planned(images: Path, task: Any, **options: Any) -> list[Item]:
    return plan([images], task, RunOptions(out=Path("out"), **options))


def test_the_first_variant_is_the_image_without_and_the_others_have_seeds_of_their_own(images, task):
    alone, three = planned(images, task), planned(images, task, variants=3)
    assert three[::3] == alone
    assert [item.output.name for item in three[:4]] == ["a.png", "a_v2.png", "a_v3.png", "b.png"]
    assert len({item.seed for item in three}) == 18
    assert all(0 <= item.seed < 2**63 for item in three)


def test_variants_of_an_image_seed_can_be_given_back(images, task):
    options = {"out": Path("out"), "image_seed": 7}
    one, two = plan([images / "a.png"], task, RunOptions(**options, variants=2))
    assert (one.seed, two.seed) == (7, seeds.variant_seed(7, 1))
    (back,) = plan([images / "a.png"], task, RunOptions(**options | {"image_seed": two.seed}))
    assert back.seed == two.seed
    with pytest.raises(UsageError, match="image_seed is of one image, and there are 6"):
        plan([images], task, RunOptions(**options, variants=2))


def test_names_of_variants_clash_with_no_other_image(images, task):
    for name in ("a_v2.png", "a.jpg", "a.webp"):
        Image.new("RGB", (8, 8)).save(images / name)
    items = planned(images, task, variants=2, ext="png", suffix="_x")
    names = [item.output.name for item in items if item.input.parent == images]
    assert len(set(names)) == len(names) == 14
    assert {"a_x.png", "a_x_v2.png", "a.webp_x.png", "a.webp_x_v2.png"} <= set(names)


def test_a_run_reports_every_variant(images, task, copying, home, tmp_path):
    items = plan([images / "a.png"], task, RunOptions(out=tmp_path / "out" / "x.png", variants=2))
    report = run_items(items, task, copying)
    assert [(row["status"], row.get("variant")) for row in report.items] == [("ok", None), ("ok", 1)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["x.png", "x_v2.png"]
    assert [seeds for _, _, seeds in copying.calls] == [[item.seed for item in items]]


@pytest.fixture
def hole(tmp_path: Path) -> Path:
    """One image with a transparent area, for the bundled inpainting adapter, whose start has noise."""
    image = Image.new("RGBA", (64, 64), (200, 40, 40, 255))
    image.paste((0, 0, 0, 0), (16, 16, 48, 48))
    image.save(tmp_path / "hole.png")
    return tmp_path / "hole.png"


@pytest.mark.slow
def test_a_later_run_with_more_variants_computes_those_that_are_missing(home, hole, tmp_path):
    options = RunOptions(out=tmp_path / "out", **ONE_STEP)
    page = tmp_path / "page.html"
    file = tmp_path / "jobs.jsonl"
    file.write_text(json.dumps({"task": "inpaint", "input": str(hole), "variants": 3}))
    with Hub.open() as hub:
        assert hub.run("inpaint", [hole], options).ok == 1
        dry = hub.run("inpaint", [hole], options.replace(variants=2, dry_run=True))
        assert [row["status"] for row in dry.items] == ["skipped", "planned"]
        assert hub.run("inpaint", [hole], options.replace(variants=2, report=page)).ok == 1
        report = hub.run_jobs(file, options)
        assert (report.ok, report.skipped) == (1, 2)
        again = hub.run("inpaint", [hole], options.replace(out=tmp_path / "again.png", image_seed=dry.items[1]["seed"]))
    assert "hole_v2.png" in page.read_text()
    assert len({Image.open(tmp_path / "out" / f"hole{mark}.png").tobytes() for mark in ("", "_v2", "_v3")}) == 3
    assert Image.open(again.items[0]["output"]).tobytes() == Image.open(tmp_path / "out" / "hole_v2.png").tobytes()


@pytest.mark.slow
def test_the_library_returns_a_list_for_each_image(home, hole):
    with Image.open(hole) as opened, Hub.open() as hub:
        image = opened.copy()
        one = hub.generate("inpaint", image, seeds=5, steps=1, device="cpu")
        two = hub.generate("inpaint", [image], seeds=5, variants=2, steps=1, device="cpu")
        assert [len(of_image) for of_image in two] == [2]
        assert two[0][0].tobytes() == one.tobytes() != two[0][1].tobytes()
        alone = hub.generate("inpaint", image, seeds=seeds.variant_seed(5, 1), steps=1, device="cpu")
        assert two[0][1].tobytes() == alone.tobytes()


def test_images_that_no_noise_would_tell_apart_are_refused(home, images):
    with Hub.open() as hub:
        with pytest.raises(UsageError, match=r"^variants 2: superres:1 is a regression, which takes no noise"):
            hub.run("superres", [images], RunOptions(variants=2))
        with pytest.raises(UsageError, match=r"^variants 2: temperature 0 is without noise"):
            hub.run("inpaint", [images], RunOptions(variants=2, temperature=0))
        assert hub.run("superres", [images], RunOptions(variants=2, sampler="renoise", dry_run=True)).failed == 0
