"""Runs over folders in object stores: an S3 server of moto's, and fsspec's memory."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image
from s3_server import BUSY, CUT, DENIED, S3Server, named_by_environment

from codi_hub import Catalog, Hub, RunOptions, objects, tasks
from codi_hub.errors import CodiError
from codi_hub.folders.plan import Item, plan
from codi_hub.folders.rows import RegistryLog
from codi_hub.urls import UrlPath


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.close()


@pytest.fixture
def s3(server: S3Server) -> Iterator[S3Server]:
    """The server, as the environment names it."""
    with named_by_environment(server, attempts=2):
        yield server


class Bucket:
    """A new bucket, by whole objects."""

    def __init__(self, kind: str) -> None:
        self.system = fsspec.filesystem(kind, use_listings_cache=False)
        self.name = f"bucket-{uuid.uuid4().hex[:8]}"
        self.url = f"{kind}://{self.name}"
        if kind == "s3":
            self.system.mkdir(self.name)

    def put(self, key: str, content: bytes) -> None:
        self.system.pipe_file(f"{self.name}/{key}", content)

    def fill(self, folder: Path, prefix: str = "in") -> None:
        for name, content in contents(folder).items():
            self.put(f"{prefix}/{name}", content)

    def contents(self, prefix: str) -> dict[str, bytes]:
        root = f"{self.name}/{prefix}"
        found = self.system.find(root)
        return {path.lstrip("/")[len(root) + 1 :]: self.system.cat_file(path) for path in found}


@pytest.fixture(params=["memory", "s3"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    if request.param == "s3":
        request.getfixturevalue("s3")
    return Bucket(request.param)


@pytest.fixture
def s3_bucket(s3: S3Server) -> Bucket:
    return Bucket("s3")


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """noise/: six images of one shape in two folders, and one file that is none."""
    root = tmp_path / "noise"
    (root / "sub dir").mkdir(parents=True)
    for k, name in enumerate(["a.png", "é ü.png", "sub dir/50%.png", "sub dir/x#y?z=1.png", "[b]*.png", "c.png"]):
        (root / name).write_bytes(png(k))
    (root / "broken.png").write_bytes(b"not an image")
    return root


def png(seed: int, side: int = 16) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def options(out: Any, **changes: Any) -> RunOptions:
    return RunOptions(out=out, steps=1, batch=1, device="cpu", **changes)


def statuses(report: Any) -> dict[str, str]:
    return {Path(row["input"]).name: row["status"] for row in report.items}


def failure(report: Any) -> str:
    (row,) = [row for row in report.items if row["status"] == "failed" and "broken" not in row["input"]]
    return str(row["error"])


# ---- the run


def test_a_run_over_a_store_is_the_local_run(bucket: Bucket, noise: Path, tmp_path: Path) -> None:
    bucket.fill(noise)
    with Hub.open() as hub:
        local = hub.run("superres", [noise], options(tmp_path / "out"))
        stored = hub.run("superres", [f"{bucket.url}/in"], options(f"{bucket.url}/out"))
        mixed = hub.run("superres", [f"{bucket.url}/in/"], options(tmp_path / "mixed"))
        shown = hub.catalog.show_run(2)
    assert (stored.ok, stored.failed) == (local.ok, local.failed) == (mixed.ok, mixed.failed) == (6, 1)
    assert bucket.contents("out") == contents(tmp_path / "out") == contents(tmp_path / "mixed")
    assert [(row["seed"], row["status"], row["error"]) for row in stored.items] == [
        (row["seed"], row["status"], row["error"]) for row in local.items
    ]
    assert {row["input"].partition("/in/")[0] for row in stored.items} == {bucket.url}
    assert f"{bucket.url}/out/sub dir/x#y?z=1.png" in [item["output"] for item in shown["items"]]


def test_what_is_finished_is_known_without_reading_it(s3: S3Server, s3_bucket: Bucket, noise: Path) -> None:
    s3_bucket.fill(noise)
    there, out = [f"{s3_bucket.url}/in"], f"{s3_bucket.url}/out"

    def run(**changes: Any) -> Any:
        s3.requests.clear()
        with Hub.open() as hub:
            return hub.run("superres", there, options(out, **changes))

    first = run()
    assert first.ok == 6
    again = run()
    assert (again.ok, again.skipped, again.failed) == (0, 6, 1)
    read = [line for line in s3.requests if line.startswith("GET") and "?" not in line]
    assert {line.rpartition("/")[2] for line in read} <= {"broken.png"}
    verified = run(verify_outputs=True)
    assert (verified.ok, verified.skipped) == (0, 6)
    assert f"GET /{s3_bucket.name}/out/a.png" in s3.requests
    s3_bucket.put("in/a.png", png(0) + b"\0")  # another file, of the same image
    s3_bucket.put("in/c.png", png(5))  # written again, as it was
    s3_bucket.system.rm_file(f"{s3_bucket.name}/out/[b]*.png")
    changed = run()
    assert {name for name, status in statuses(changed).items() if status == "ok"} == {"a.png", "[b]*.png"}


def test_an_object_that_codi_did_not_write_stays(bucket: Bucket, noise: Path) -> None:
    bucket.fill(noise)
    bucket.put("out/a.png", png(7))
    with Hub.open() as hub:
        report = hub.run("superres", [f"{bucket.url}/in"], options(f"{bucket.url}/out"))
        assert "codi did not write it" in failure(report)
        assert bucket.contents("out")["a.png"] == png(7)
        bucket.put("out/c.png", bucket.contents("out")["c.png"][:100])
        report = hub.run("superres", [f"{bucket.url}/in"], options(f"{bucket.url}/out"))
        assert statuses(report)["c.png"] == "ok"
        assert report.items[-1]["status"] == "skipped"
        report = hub.run("superres", [f"{bucket.url}/in"], options(f"{bucket.url}/out", overwrite=True))
    assert report.ok == 6


def test_outputs_in_the_input_folder_are_not_inputs(bucket: Bucket) -> None:
    bucket.put("in/a.png", png(0))
    with Hub.open() as hub:
        assert hub.run("superres", [f"{bucket.url}/in"], options(f"{bucket.url}/in/out")).ok == 1
        assert hub.run("superres", [f"{bucket.url}/in"], options(f"{bucket.url}/in/out")).skipped == 1
        one = hub.run("superres", [f"{bucket.url}/in/a.png"], options(f"{bucket.url}/in/large.png"))
        assert hub.run("superres", [f"{bucket.url}/in"], options(f"{bucket.url}/other")).ok == 1
        with pytest.raises(CodiError, match=r"is the input .*: choose another"):
            hub.run("superres", [f"{bucket.url}/in"], options(f"{bucket.url}/in"))
        default = hub.run("superres", [f"{bucket.url}/in"], RunOptions(steps=1, dry_run=True))
    assert one.ok == 1
    assert default.items[0]["output"] == f"{bucket.url}/in_superres/a.png"


def test_masks_and_their_changes_come_from_the_store(bucket: Bucket, tmp_path: Path) -> None:
    local = tmp_path / "holes"
    (local / "sub").mkdir(parents=True)
    mask = Image.new("L", (32, 32))
    mask.paste(255, (8, 8, 20, 20))
    for k, name in enumerate(["a", "sub/b"]):
        (local / f"{name}.png").write_bytes(png(k, 32))
        mask.save(local / f"{name}_mask.png")
    mask.save(local / "lost.mask.png")
    bucket.fill(local)
    with Hub.open() as hub:
        assert hub.run("inpaint", [local], options(tmp_path / "out")).ok == 2
        report = hub.run("inpaint", [f"{bucket.url}/in"], options(f"{bucket.url}/out"))
        assert [(Path(entry["path"]).name, entry["why"]) for entry in report.left_out] == [
            ("lost.mask.png", "it belongs to no image that is read")
        ]
        assert bucket.contents("out") == contents(tmp_path / "out")
        assert hub.run("inpaint", [f"{bucket.url}/in"], options(f"{bucket.url}/out")).skipped == 2
        mask.paste(255, (0, 0, 4, 4))
        mask.save(local / "a_mask.png")
        bucket.fill(local)
        report = hub.run("inpaint", [f"{bucket.url}/in"], options(f"{bucket.url}/out"))
    assert statuses(report) == {"a.png": "ok", "b.png": "skipped"}


def test_prompts_come_from_the_store(bucket: Bucket, tmp_path: Path) -> None:
    local = tmp_path / "imgs"
    (local / "sub").mkdir(parents=True)
    for k, name in enumerate(["a.png", "sub/b.png", "c.png"]):
        (local / name).write_bytes(png(k))
    lines = [{"file_name": "a.png", "prompt": "make it night"}, {"file_name": "sub/b.png", "text": "make it snow"}]
    lines.append({"file_name": "lost.png", "text": "nothing"})
    (local / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (local / "c.txt").write_text("make it green")
    bucket.fill(local)
    left_out: list[str] = []
    edit = tasks.load("edit")
    here = plan([local], edit, RunOptions(out=tmp_path / "out"))
    with objects.listed_once():
        there = plan(
            [UrlPath(f"{bucket.url}/in")],
            edit,
            RunOptions(out=UrlPath(f"{bucket.url}/out")),
            on_left_out=lambda path, why: left_out.append(f"{path}: {why}"),
        )
    assert [(item.name, item.prompt, item.seed) for item in there] == [
        (item.name, item.prompt, item.seed) for item in here
    ]
    assert left_out == [f"{bucket.url}/in/metadata.jsonl: its line for lost.png names no file"]
    bucket.put("in/metadata.jsonl", b"{")
    with pytest.raises(CodiError, match=rf"^{bucket.url}/in/metadata.jsonl line 1 is not JSON"):
        plan([UrlPath(f"{bucket.url}/in")], edit, RunOptions(out=tmp_path / "out"))


def test_shards_of_a_store_are_one_run(bucket: Bucket, noise: Path, codi: Callable[..., Any], tmp_path: Path) -> None:
    bucket.fill(noise)
    call = ("run", "superres", f"{bucket.url}/in", "--output", f"{bucket.url}/out", "--steps", "1", "--batch", "1")
    parts = [json.loads(codi(*call, "--shard", f"{k}/2", "--json").out) for k in (1, 2)]
    assert sum(part["ok"] for part in parts) == 6
    shown = json.loads(codi("runs", "show", "2", "--json").out)
    assert ([part["shard"] for part in shown["parts"]], shown["ok"], shown["failed"]) == (["1/2", "2/2"], 6, 1)
    page = tmp_path / "page.html"
    again = codi(*call, "--report", page)
    assert again.out.endswith(f"-> {bucket.url}/out and 1 more folders\n")
    assert page.read_text().count('src="data:image/webp') >= 12


@pytest.mark.slow
def test_devices_share_a_run_over_a_store(s3_bucket: Bucket, noise: Path, tmp_path: Path) -> None:
    s3_bucket.fill(noise)
    there = [f"{s3_bucket.url}/in"]
    with Hub.open() as hub:
        hub.run("superres", [noise], options(tmp_path / "out"))
        report = hub.run("superres", there, options(f"{s3_bucket.url}/out", devices="cpu,cpu"))
        assert (report.ok, report.failed) == (6, 1)
        assert s3_bucket.contents("out") == contents(tmp_path / "out")
        assert hub.run("superres", there, options(f"{s3_bucket.url}/out")).skipped == 6
        with pytest.raises(CodiError, match=r"memory:// is the memory of one process"):
            hub.run("superres", [noise], options("memory://somewhere/out", devices="cpu,cpu"))


# ---- faults


def test_an_upload_that_is_cut_leaves_nothing(s3: S3Server, s3_bucket: Bucket, noise: Path) -> None:
    s3_bucket.fill(noise)
    s3.fault = lambda request: CUT if request == f"PUT /{s3_bucket.name}/out/c.png" else None
    with Hub.open() as hub:
        report = hub.run("superres", [f"{s3_bucket.url}/in"], options(f"{s3_bucket.url}/out"))
        assert statuses(report)["c.png"] == "failed"
        assert failure(report).startswith(f"{s3_bucket.url}/out/c.png: ")
        assert len(s3_bucket.contents("out")) == 5
        s3.fault = lambda request: None
        report = hub.run("superres", [f"{s3_bucket.url}/in"], options(f"{s3_bucket.url}/out"))
    assert (report.ok, report.skipped, len(s3_bucket.contents("out"))) == (1, 5, 6)


def test_a_part_that_is_refused_leaves_what_was_there(
    s3: S3Server, s3_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "AT_ONCE", 0)
    monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda *args, **more: 5 << 20)
    path = UrlPath(f"{s3_bucket.url}/large.png")
    s3_bucket.put("large.png", b"before")

    def write() -> None:
        with objects.uploaded(path) as file:
            file.write_bytes(b"x" * (11 << 20))

    s3.fault = lambda request: DENIED if "partNumber=3" in request else None
    with pytest.raises(CodiError, match=rf"^{path}: access denied"):
        write()
    assert s3_bucket.system.cat_file(f"{s3_bucket.name}/large.png") == b"before"
    assert s3_bucket.system.call_s3("list_multipart_uploads", Bucket=s3_bucket.name).get("Uploads", []) == []
    s3.fault = lambda request: None
    write()
    assert s3_bucket.system.info(f"{s3_bucket.name}/large.png")["size"] == 11 << 20


@pytest.mark.slow
def test_a_store_that_refuses_some_requests_loses_nothing(
    s3: S3Server, s3_bucket: Bucket, noise: Path, tmp_path: Path
) -> None:
    s3_bucket.fill(noise)
    refused: list[str] = []
    s3.requests.clear()

    def fault(request: str) -> Any:
        if len(s3.requests) % 8:  # one of eight is refused
            return None
        refused.append(request)
        return BUSY if len(refused) % 2 else CUT

    s3.fault = fault
    with Hub.open() as hub:
        hub.run("superres", [noise], options(tmp_path / "out"))
        for _ in range(2):
            report = hub.run("superres", [f"{s3_bucket.url}/in"], options(f"{s3_bucket.url}/out", overwrite=True))
            assert (report.ok, report.failed) == (6, 1)
    s3.fault = lambda request: None
    assert len(refused) > 2
    assert s3_bucket.contents("out") == contents(tmp_path / "out")


def test_a_killed_run_makes_nothing_twice(s3_bucket: Bucket, noise: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end comes between an upload and the record of its version, which is the worst moment."""
    from codi_hub.registry.runs import RunLog

    s3_bucket.fill(noise)
    monkeypatch.setattr(RunLog, "set_version", lambda self, item, version: None)
    with Hub.open() as hub:
        assert hub.run("superres", [f"{s3_bucket.url}/in"], options(f"{s3_bucket.url}/out")).ok == 6
        report = hub.run("superres", [f"{s3_bucket.url}/in"], options(f"{s3_bucket.url}/out"))
    assert (report.ok, report.skipped) == (0, 6)


@pytest.mark.slow
def test_a_run_that_is_killed_in_an_upload_goes_on_there(
    s3: S3Server, s3_bucket: Bucket, noise: Path, tmp_path: Path
) -> None:
    s3_bucket.fill(noise)
    command = [sys.executable, "-m", "codi_hub.cli", "run", "superres", f"{s3_bucket.url}/in", "-q", "--steps", "1"]
    command += ["--batch", "1", "--device", "cpu", "--out", f"{s3_bucket.url}/out"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    uploads: list[str] = []

    def fault(request: str) -> Any:
        if request.startswith("PUT") and request.endswith(".png"):
            uploads.append(request)
            if len(uploads) == 3:
                running.kill()
                running.wait()
                return CUT
        return None

    s3.fault = fault
    assert running.wait(timeout=300) == -signal.SIGKILL
    s3.fault = lambda request: None
    finished = s3_bucket.contents("out")
    assert 0 < len(finished) < 6
    with Hub.open() as hub:
        hub.run("superres", [noise], options(tmp_path / "out"))
        report = hub.run("superres", [f"{s3_bucket.url}/in"], options(f"{s3_bucket.url}/out"))
    assert (report.ok, report.skipped, report.failed) == (6 - len(finished), len(finished), 1)
    assert s3_bucket.contents("out") == contents(tmp_path / "out")


@pytest.mark.parametrize("recorded", [True, False])
def test_a_dead_worker_s_upload_counts(bucket: Bucket, recorded: bool) -> None:
    """It is as it was written: by its version, or by its content if a kill came before the version was recorded."""
    bucket.put("in/a.png", png(0))
    with Hub.open() as hub:
        hub.run("superres", [f"{bucket.url}/in"], options(f"{bucket.url}/out"))
        runs = hub.catalog.registry.runs
        item = Item(f"{bucket.url}/in/a.png", f"{bucket.url}/out/a.png", "a.png", 0)
        if not recorded:
            runs.set_version(1, None)
        log = RegistryLog(runs, hub.catalog.registry.adapters.resolve("superres"), {}, [item])
        log.join(1)
        assert set(log.made({7: item})) == {7}
        bucket.put("out/a.png", png(1))
        assert log.made({7: item}) == {}


# ---- hostile stores


def test_hostile_names_are_left_out(s3_bucket: Bucket, tmp_path: Path) -> None:
    hostile = ["../up.png", "/etc/abs.png", "x//y.png", "./dot.png", "x/../../../../z.png", "\\..\\w.png"]
    for name in ["a.png", "x/y.png", "sub/", ".hidden.png", ".h/i.png", *hostile]:
        s3_bucket.put(f"in/{name}", b"" if name.endswith("/") else png(0))
    with Hub.open() as hub:
        report = hub.run("superres", [f"{s3_bucket.url}/in"], options(tmp_path / "a" / "b" / "out"))
    assert sorted(contents(tmp_path)) == [f"a/b/out/{name}" for name in ("\\..\\w.png", "a.png", "x/y.png")]
    assert report.failed == 0
    assert len(report.left_out) == len(hostile) - 1
    assert {entry["why"] for entry in report.left_out} == {
        "its name in the store is absolute or has an empty part, . or ..: rename the object"
    }


def test_hostile_content_is_refused_before_it_is_decoded(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = bytearray(png(0))
    bomb[16:24] = (100_000).to_bytes(4) + (100_000).to_bytes(4)
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4)
    frames, file = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")], io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    cases = {"bomb.png": bytes(bomb), "empty.png": b"", "film.gif": file.getvalue(), "text.png": b"<svg/>"}
    for name, content in cases.items():
        bucket.put(f"in/{name}", content)
    bucket.put("in/large.png", png(0) + bytes(1 << 20))
    monkeypatch.setattr("codi_hub.folders.loading.MAX_BYTES", 1 << 20)
    Image.init()  # one of Pillow's plug-ins makes an image when it is imported
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with Hub.open() as hub:
        report = hub.run("superres", [f"{bucket.url}/in"], options(f"{bucket.url}/out"))
    errors = {Path(row["input"]).name: row["error"] for row in report.items}
    parts = {"bomb.png": "pixels", "empty.png": "0 bytes", "film.gif": "animation", "text.png": "not in a known image"}
    for name, part in parts.items():
        assert part in errors[name]
    assert errors["large.png"] == "the file has over 1048576 bytes, the limit: make it smaller"
    assert bucket.contents("out") == {}


# ---- refusals


@pytest.mark.parametrize(
    ("call", "code", "line"),
    [
        ("file:///etc", 2, "file:///etc: not read or written by URL: give a local file or folder, or a store as s3://"),
        ("https://me:topsecret@host/a.png", 2, "https://host/a.png: not read or written by URL: "),
        ("http://host/a.png?key=1", 2, "http://host/a.png?key=1: not read or written by URL: "),
        ("nosuch://there", 2, "nosuch://there: not read or written by URL: "),
        ("s3://me:top/sec@ret@bucket/in", 2, "s3://bucket/in: give the credentials of a store in the environment"),
        ("s3://no-such-bucket/in", 1, "no such file or folder: s3://no-such-bucket/in"),
        ("s3://BUCKET/nothing", 1, "no such file or folder: s3://BUCKET/nothing"),
        ("s3://BUCKET/in/../x", 2, "s3://BUCKET/in/../x: name a bucket, and a folder in it without .."),
        ("s3://BUCKET", 2, "s3://BUCKET has no folder beside it: choose an output folder"),
        ("s3://BUCKET/in --out https://host/out", 2, "--out: https://host/out: not read or written by URL: "),
        (
            "s3://BUCKET/in -o s3://no-such-bucket/out",
            2,
            "--out s3://no-such-bucket/out: cannot be written (there is no",
        ),
        (
            "s3://BUCKET/in --report s3://BUCKET/page.html",
            2,
            "--report s3://BUCKET/page.html: the page is written to a",
        ),
        ("s3://BUCKET/in -o s3://BUCKET/a.gif", 2, "--out s3://BUCKET/a.gif: the name of one image"),
    ],
)
def test_what_cannot_be_a_place_is_one_line(
    s3_bucket: Bucket, codi: Callable[..., Any], call: str, code: int, line: str
) -> None:
    s3_bucket.put("in/a.png", png(0))
    answer = codi("run", "superres", *call.replace("BUCKET", s3_bucket.name).split())
    assert answer.code == code
    assert answer.err.startswith(f"Error: {line.replace('BUCKET', s3_bucket.name)}")
    assert answer.err.count("\n") == 1
    assert "sec" not in answer.err


def test_a_job_without_a_place_is_named_by_its_line(tmp_path: Path, codi: Callable[..., Any]) -> None:
    file = tmp_path / "jobs.jsonl"
    for line, where in (
        ({"task": "superres", "input": "https://me:pass@host/a.png"}, "https://host/a.png"),
        ({"task": "superres", "input": str(tmp_path), "output": "ftp://host/out"}, "out: ftp://host/out"),
        ({"task": "depth", "input": str(tmp_path), "also": {"task": "canny", "input": "file:///x"}}, "also: file:///x"),
    ):
        file.write_text(json.dumps(line))
        answer = codi("run", "--jobs", file)
        assert (answer.code, answer.err.count("\n")) == (2, 1)
        assert answer.err.startswith(f"Error: {file} line 1: {where}: not read or written by URL")


def test_a_store_that_does_not_let_in_is_one_line(
    s3: S3Server, s3_bucket: Bucket, codi: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_bucket.put("in/a.png", png(0))
    call = ("run", "superres", f"{s3_bucket.url}/in", "--steps", "1")

    def refused(code: int) -> str:
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        answer = codi(*call)
        assert (answer.code, answer.err.count("\n")) == (code, 1)
        return str(answer.err)

    s3.fault = lambda request: DENIED if request.startswith("GET") else None
    assert "/in: access denied (Access Denied): check the store's credentials" in refused(1)
    s3.fault = lambda request: DENIED if request.startswith("PUT") else None
    assert "/in_superres: cannot be written (access denied (Access Denied)" in refused(2)
    s3.fault = lambda request: None
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert 'Could not connect to the endpoint URL: "http://127.0.0.1:9/' in refused(1)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert refused(1).endswith("/in: no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY\n")


def test_the_log_has_what_was_made_of_a_store(bucket: Bucket) -> None:
    bucket.put("in/a.png", png(0))
    with Hub.open() as hub:
        hub.run("superres", [f"{bucket.url}/in"], options(f"{bucket.url}/out"))
    with Catalog.open() as catalog:
        (item,) = catalog.registry.runs.items(1)
    content = bucket.contents("out")["a.png"]
    assert (item.output, item.output_bytes) == (f"{bucket.url}/out/a.png", len(content))
    assert item.output_mtime_ns == objects.version(UrlPath(item.output))
    assert item.input_stamp == objects.stamp([UrlPath(item.input)])
