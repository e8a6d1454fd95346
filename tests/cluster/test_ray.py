"""Runs by Ray: on a local cluster of two CPU actors, the run of one process."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from codi_hub import Hub, RunOptions
from codi_hub.errors import UsageError
from codi_hub.events import ItemDone

COUNT = 40  # several chunks for each actor
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """noise/: images of one shape, one of them broken."""
    root = tmp_path / "noise"
    root.mkdir()
    for k in range(COUNT):
        pixels = np.random.default_rng(k).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{k:02}.png")
    (root / "broken.png").write_bytes(b"not an image")
    return root


def options(out: Path, **changes: object) -> RunOptions:
    return RunOptions(out=out, steps=1, batch=1, device="cpu", **changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def actor_of(pid: int) -> int | None:
    """Return an actor among the descendants of a process, if there is one yet."""
    below = [pid]
    while below:
        try:
            one = below.pop()
            if b"ray::MapWorker" in Path(f"/proc/{one}/cmdline").read_bytes():
                return one
            for task in Path(f"/proc/{one}/task").iterdir():
                below += map(int, (task / "children").read_text().split())
        except FileNotFoundError:
            continue
    return None


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("CODI_TEST_RAY"), reason="Ray listens on all interfaces: set CODI_TEST_RAY=1 where that is safe"
)
def test_two_actors_make_the_run_of_one_process_though_one_is_killed(noise, tmp_path):
    killed: list[int] = []
    done: list[int] = []

    def kill(event: object) -> None:
        if isinstance(event, ItemDone):
            done.append(event.done)
            if not killed and (actor := actor_of(os.getpid())):
                killed.append(actor)
                os.kill(actor, signal.SIGKILL)

    with Hub.open() as hub:
        whole = hub.run("superres", [noise], options(tmp_path / "whole"))
        both = hub.run("superres", [noise], options(tmp_path / "both", devices="cpu,cpu"), kill, engine="ray")
        again = hub.run("superres", [noise], options(tmp_path / "both"))
        shown = hub.catalog.show_run(2)
    assert killed
    assert contents(tmp_path / "whole") == contents(tmp_path / "both")
    assert [(row["input"], row["status"], row["seed"], row["error"]) for row in both.items] == [
        (row["input"], row["status"], row["seed"], row["error"]) for row in whole.items
    ]
    assert done == list(range(1, COUNT + 2))
    assert {item["output"] for item in shown["items"] if item["status"] == "ok"} == {
        str(path) for path in (tmp_path / "both").iterdir()
    }
    assert (again.ok, again.skipped, again.failed) == (0, COUNT, 1)


@pytest.mark.parametrize("address", ["", "here", "host", "host:port", "ray://host"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(UsageError, match=r"^ray"):
        RunOptions(ray=address)


def test_devices_of_two_kinds_are_refused(noise, tmp_path):
    with Hub.open() as hub, pytest.raises(UsageError, match="with ray all are cpu or all are cuda"):
        hub.run("superres", [noise], options(tmp_path / "out", devices="cpu,cuda:0"), engine="ray")


def test_the_manifest_of_the_docs_is_a_ray_job():
    (text,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "scale.md").read_text(), re.DOTALL)
    job = yaml.safe_load(text)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= {
            volume["name"] for volume in group["template"]["spec"]["volumes"]
        }
    assert "--ray auto" in job["spec"]["entrypoint"]
