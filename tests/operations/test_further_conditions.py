"""Several conditions on one image, by name: `Hub.generate` and jobs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import record_of, stir

import codi_hub
from codi_hub import CodiError, Hub, adapters, backbones
from codi_hub.adapters import format
from codi_hub.images.metadata import read_origin
from codi_hub.seeds import image_seed

NANO = Path(codi_hub.__file__).parent / "nano" / "base"
EXACT: dict[str, Any] = {"device": "cpu", "dtype": "fp32", "steps": 1}
FLAGS = ("--steps", "1", "--device", "cpu", "--dtype", "fp32")
RAMP = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
EDGES = Image.fromarray(np.kron(np.indices((8, 8)).sum(0) % 2 * 255, np.ones((8, 8))).astype(np.uint8))


@pytest.fixture(scope="module")
def control_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of kind control with one channel, on the bundled base."""
    base, folder = backbones.load(str(NANO)), tmp_path_factory.mktemp("control")
    torch.manual_seed(0)
    adapter = stir(adapters.build("control", base, condition_channels=1), 0.05)
    format.write(folder, adapter, record_of(base, adapter), "")
    return folder


@pytest.fixture
def hub(control_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """depth:2 and canny:2 are of kind control, the latest versions."""
    hub = Hub.open()
    for task in ("depth", "canny"):
        values = {"kind": "control", "steps": 4, "parameters": 1, "metrics": {}}
        row, _ = hub.catalog.registry.adapters.add(control_folder, task=task, base="nano", **values)
        hub.catalog.registry.adapters.tag(row.ref, "latest", "nano")
    return hub


def difference(one: Any, other: Any) -> int:
    """Return the largest difference in 8-bit levels."""
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


def test_an_image_has_the_conditions_of_two_tasks(hub: Hub) -> None:
    refs, images = [["depth", "canny"], "depth"], [[RAMP, EDGES], RAMP]
    named: dict[str, Any] = {"prompts": "a red ball", "seeds": 5, **EXACT}
    both, alone = hub.generate(refs, images, **named)
    assert both.shape == (64, 64, 3)
    assert difference(both, alone) > 1
    weak, twice = hub.generate([["depth", "canny"], "depth"], [[RAMP, EDGES]] * 2, strength=[[1, 0], 0.5], **named)
    assert difference(weak, alone) <= 1
    assert difference(twice, both) > 1
    large = np.tile(RAMP, (3, 3)), EDGES.resize((192, 192))
    tiled = hub.generate(["depth", ["depth", "canny"]], [large[0], large], tile="128", **named)
    assert [one.shape for one in tiled] == [(192, 192, 3)] * 2
    assert difference(*tiled) > 1


WRONG: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "refs": ([["depth", "canny"]], [RAMP], {}, r"ref\[0\]: 2 values for 1 condition: give one for all, or one each"),
    "images": ([["depth", "canny"]], [[RAMP] * 3], {}, r"ref\[0\]: 2 values for 3 conditions"),
    "strengths": ([["depth", "canny"]], [[RAMP, EDGES]], {"strength": [[1]]}, r"strength\[0\]: 1 value for 2 conditi"),
    "sizes": ([["depth", "canny"]], [[RAMP, EDGES.resize((32, 64))]], {},
              r"images\[0\]: the conditions of one image are of 64x64 and 32x64 pixels: give them one size"),
    "start": ([["depth", "canny:1"]], [[RAMP, EDGES]], {},
              r"images\[0\]: canny:1 has start 0.2: it begins from its condition and takes no second one: use"),
    "a strength": ([["depth", "canny"]], [[RAMP, EDGES]], {"strength": [[1, 3]]}, r"images\[0\]: strength 3: a number"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_share_an_image_is_one_line(hub: Hub, case: str) -> None:
    refs, images, more, message = WRONG[case]
    with pytest.raises(CodiError, match=message):
        hub.generate(refs, images, prompts="x", **more, **EXACT)


# ---- jobs


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """maps/a.png and maps/sub/b.npy, edges/a.png and edges/sub/b.jpg, and the working directory above them."""
    for folder in ("maps/sub", "edges/sub"):
        (tmp_path / folder).mkdir(parents=True)
    Image.fromarray((RAMP * 65535).astype(np.uint16)).save(tmp_path / "maps/a.png")
    np.save(tmp_path / "maps/sub/b.npy", RAMP)
    EDGES.save(tmp_path / "edges/a.png")
    EDGES.save(tmp_path / "edges/sub/b.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jobs(folder: Path, **changed: Any) -> list[str]:
    also = {"task": "canny", "input": "edges", "strength": 0.5} | changed
    line = {"task": "depth", "input": "maps", "output": "out", "prompt": "a red ball", "also": [also]}
    (folder / "jobs.jsonl").write_text(json.dumps(line) + "\n")
    return ["run", "--jobs", "jobs.jsonl", "--json", *FLAGS]


@pytest.mark.slow
def test_a_job_gives_each_image_its_further_condition(hub: Hub, files: Path, codi: Callable[..., Any]) -> None:
    report = json.loads(codi(*jobs(files)).out)
    assert (report["ok"], report["failed"]) == (2, 0)
    assert report["runs"][0]["also"] == [{"adapter": "canny:2", "strength": 0.5}]
    expected = hub.generate(
        [["depth", "canny"]], [[RAMP, EDGES]], strength=[[1, 0.5]], prompts="a red ball",
        seeds=image_seed(0, "a.png"), **EXACT,
    )[0]  # fmt: skip
    assert difference(Image.open("out/a.png"), expected) <= 1
    origin = read_origin(files / "out/sub/b.png") or {}
    assert origin["also"] == [{"adapter": "canny:2", "strength": 0.5, "input": "b.jpg"}]

    def statuses(line: list[str]) -> list[str]:
        return [item["status"] for run in json.loads(codi(*line).out)["runs"] for item in run["items"]]

    assert statuses(jobs(files)) == ["skipped", "skipped"]
    Image.fromarray(255 - np.asarray(EDGES)).save(files / "edges/a.png")
    assert statuses(jobs(files)) == ["ok", "skipped"]
    assert statuses([*jobs(files, strength=1), "--dry-run"]) == ["planned", "planned"]
    assert codi(*[part for part in jobs(files) if part != "--json"]).out.endswith(
        "(depth:2 + canny:2 at 0.5, 1 step) -> out and 1 more folders\n"
    )


@pytest.mark.slow
def test_further_conditions_come_from_a_store(hub: Hub, files: Path, codi: Callable[..., Any]) -> None:
    store, url = fsspec.filesystem("memory"), f"memory://{files.name}"
    store.put(str(files / "maps"), f"/{files.name}/maps", recursive=True)
    store.put(str(files / "edges"), f"/{files.name}/edges", recursive=True)
    assert json.loads(codi(*jobs(files)).out)["ok"] == 2

    def statuses() -> list[str]:
        line = json.loads((files / "jobs.jsonl").read_text()) | {"input": f"{url}/maps", "output": f"{url}/out"}
        line["also"][0]["input"] = f"{url}/edges"
        (files / "store.jsonl").write_text(json.dumps(line))
        report = json.loads(codi("run", "--jobs", "store.jsonl", "--json", *FLAGS).out)
        return [item["status"] for run in report["runs"] for item in run["items"]]

    assert statuses() == ["ok", "ok"]
    for name in ("a.png", "sub/b.png"):
        assert store.cat_file(f"/{files.name}/out/{name}") == (files / "out" / name).read_bytes()
    assert statuses() == ["skipped", "skipped"]
    store.put_file(str(files / "edges/sub/b.jpg"), f"/{files.name}/edges/a.png")
    assert statuses() == ["ok", "skipped"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"input": "nowhere"}, "line 1: also canny: no such file or folder: nowhere"),
        (
            {"input": "edges/a.png"},
            "line 1: also canny: edges/a.png is one file, and there are 2 images: name a folder",
        ),
        ({"input": "edges/sub"}, "line 1: also canny: edges/sub has no file for a.png"),
        ({"task": "canny:1"}, "line 1: canny:1 has start 0.2: it begins from its condition and takes no second one"),
        ({"task": "nosuch"}, "line 1: task 'nosuch' has no adapter yet"),
        ({"strength": 2}, "line 1: also: strength 2: at most 1"),
        ({"strenght": 1}, "line 1: also: no option 'strenght'; did you mean 'strength'"),
        ({"task": None}, 'line 1: also: write {"task": "canny", "input": "edges", "strength": 0.5}'),
        ({"set": {"x": 1}}, "line 1: task canny: no option 'x'"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("hub")
def test_a_further_condition_that_cannot_be_is_refused(
    files: Path, codi: Callable[..., Any], changed: dict[str, Any], message: str
) -> None:
    answer = codi(*[part for part in jobs(files, **changed) if part != "--json"])
    assert (answer.out, answer.err.count("\n")) == ("", 1)
    assert message in answer.err
    assert not (files / "out").exists()
