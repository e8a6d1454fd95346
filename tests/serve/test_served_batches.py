"""Batch jobs: many requests in one document, followed, cancelled, and continued after a kill."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import requests
from conftest import EXACT, Running, serving
from corpus import encoded, photograph
from PIL import Image

from codi_hub import Hub
from codi_hub.registry import Registry
from codi_hub.serve import batch_store, batches

PNG = encoded(photograph(16, 16), "PNG")
URI = "data:image/png;base64," + base64.b64encode(PNG).decode()


def entry(number: int, **body: Any) -> dict[str, Any]:
    fields = {"model": "deblur", "image": URI, "num_inference_steps": 1, "seed": number}
    return {"custom_id": f"one-{number}", "body": fields | body}


def ended(running: Running, name: str) -> dict[str, Any]:
    while (batch := running.get(f"/v1/batches/{name}").json())["status"] == "in_progress":
        time.sleep(0.1)
    return batch


def answers(running: Running, name: str) -> dict[str, Any]:
    lines = running.get(f"/v1/batches/{name}/results").text.splitlines()
    return {answer["custom_id"]: answer["response"] for answer in map(json.loads, lines)}


def opened(response: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(response["body"]["data"][0]["b64_json"]))), int)


def test_a_batch_is_followed_and_fetched(running: Running) -> None:
    wanted = [entry(0), entry(1, model="inpaint:1", mask=URI), entry(2, image="data:image/png;base64,AAAA")]
    batch = running.post("/v1/batches", json={"requests": wanted, "metadata": {"of": "tests"}}).json()
    assert (batch["object"], batch["metadata"], batch["request_counts"]["total"]) == ("batch", {"of": "tests"}, 3)
    events = []
    with requests.get(f"{running.url}/v1/batches/{batch['id']}/events", stream=True, timeout=60) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith(b"data: ")]
    assert events[-1]["status"] == "completed"
    assert events[-1]["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    counts = [event["request_counts"]["completed"] + event["request_counts"]["failed"] for event in events]
    assert counts == sorted(counts)
    found = answers(running, batch["id"])
    assert {name: one["status_code"] for name, one in found.items()} == {"one-0": 200, "one-1": 200, "one-2": 400}
    assert found["one-2"]["body"]["error"]["param"] == "image"
    with Hub.open(running.home) as hub:
        expected = hub.generate("deblur:1", photograph(16, 16), seeds=0, steps=1, **EXACT)
    assert np.abs(opened(found["one-0"]) - np.asarray(expected, int)).max() <= 1
    with Registry.open(running.home) as registry:
        (row,) = [one for one in registry.runs.list() if one.options.get("batch") == batch["id"]]
        assert (row.status, row.ok, row.failed) == ("ok", 2, 1)
        assert {item.input for item in registry.runs.items(row.id)} == {"one-0", "one-1", "one-2"}


def test_openais_client_sends_follows_and_lists(running: Running) -> None:
    lines = [entry(k) | {"method": "POST", "url": "/v1/images/edits"} for k in range(2)]
    data = "\n".join(map(json.dumps, lines)).encode()
    file = running.client.files.create(file=("batch.jsonl", data), purpose="batch")
    batch = running.client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/images/edits",
        completion_window="24h",  # type: ignore[arg-type]
    )
    ended(running, batch.id)
    batch = running.client.batches.retrieve(batch.id)
    assert (batch.status, batch.request_counts and batch.request_counts.completed) == ("completed", 2)
    assert batch.id in [one.id for one in running.client.batches.list(limit=1)]
    content = running.client.files.content(str(batch.output_file_id)).text
    assert [json.loads(line)["custom_id"] for line in content.splitlines()] == ["one-0", "one-1"]
    with pytest.raises(openai.NotFoundError):
        running.client.batches.retrieve("batch_0")


def test_a_cancelled_batch_keeps_what_it_has(running: Running) -> None:
    wanted = [entry(k, num_inference_steps=4) for k in range(200)]
    name = running.post("/v1/batches", json={"requests": wanted}).json()["id"]
    while not running.get(f"/v1/batches/{name}").json()["request_counts"]["completed"]:
        time.sleep(0.05)
    assert running.post(f"/v1/batches/{name}/cancel").json()["status"] == "cancelled"
    time.sleep(1)
    count = len(answers(running, name))
    assert 0 < count < 200
    time.sleep(1)
    assert len(answers(running, name)) == count
    assert running.post(f"/v1/batches/{name}/cancel").json()["status"] == "cancelled"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "requests: a list of 1 to 10000 requests"),
        ({"requests": []}, "requests: a list of 1"),
        ({"requests": [{"body": 1}]}, 'requests[0]: {"custom_id": ..., "body": {...}}, for /v1/images/edits'),
        ({"requests": [entry(1), entry(1)]}, "requests[1]: custom_id: a text of up to 200 characters that no other"),
        ({"requests": [entry(1, image=None)]}, "requests[0]: image: at least one is needed"),
        ({"requests": [entry(1, image="https://example.org/a.png")]}, "requests[0]: image: "),
        ({"requests": [entry(1, strength=7)]}, "requests[0]: strength 7"),
        ({"requests": [entry(1, response_format="url")]}, "requests[0]: response_format url: links expire"),
        ({"requests": [entry(1, options={"mask": "/etc"}, model="inpaint")]}, "requests[0]: options.mask: names files"),
        ({"requests": [entry(1) | {"url": "/v1/chat/completions"}]}, "requests[0]: "),
        ({"requests": [entry(1)], "metadata": {"a": 1}}, "metadata: an object of short texts"),
        ({"input_file_id": "file-" + "0" * 24}, "input_file_id 'file-000"),
        ({"input_file_id": "../../etc/passwd"}, "input_file_id '../../etc/passwd'"),
    ],
)
def test_what_cannot_be_done_is_refused_as_a_whole(running: Running, document: Any, message: str) -> None:
    before = len(running.get("/v1/batches").json()["data"])
    answer = running.post("/v1/batches", json=document)
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]["message"].startswith(message)
    assert len(running.get("/v1/batches").json()["data"]) == before


def test_a_missing_model_is_not_found(running: Running) -> None:
    answer = running.post("/v1/batches", json={"requests": [entry(1, model="deblur:9")]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    for path in ("/v1/batches/x", "/v1/batches/x/events", "/v1/batches/x/results", "/v1/files/x/content"):
        assert running.get(path).status_code == 404
    assert running.post("/v1/files", files={"file": ("a", b"{")}, data={"purpose": "vision"}).status_code == 400


def test_the_oldest_that_is_finished_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_store, "MAX_BATCHES", 2)
    with serving(tmp_path) as started:
        names = []
        for number in range(3):
            names.append(started.post("/v1/batches", json={"requests": [entry(number)]}).json()["id"])
            ended(started, names[-1])
        assert [one["id"] for one in started.get("/v1/batches").json()["data"]] == names[:0:-1]
        assert started.get(f"/v1/batches/{names[0]}").status_code == 404


def test_a_full_disk_loses_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "RETRY", 0.2)
    plain, faults = batch_store.atomic_file, iter([True, False, True])

    def failing(path: Path) -> Any:
        if path.suffix == ".json" and next(faults, False):
            raise OSError(28, "No space left on device")
        return plain(path)

    monkeypatch.setattr(batch_store, "atomic_file", failing)
    with serving(tmp_path) as started:
        name = started.post("/v1/batches", json={"requests": [entry(k) for k in range(5)]}).json()["id"]
        assert ended(started, name)["request_counts"] == {"total": 5, "completed": 5, "failed": 0}
        assert len(answers(started, name)) == 5


def test_more_images_than_may_wait_are_refused(tmp_path: Path) -> None:
    with serving(tmp_path, max_queue=4) as started:
        answer = started.post("/v1/batches", json={"requests": [entry(0, model="inpaint", mask=URI, n=5)]})
        assert (
            answer.json()["error"]["message"] == "requests[0]: n: 5 images, and 4 may wait: make several requests of it"
        )
        wanted = [entry(k, model="inpaint", mask=URI, n=3) for k in range(3)]
        name = started.post("/v1/batches", json={"requests": wanted}).json()["id"]
        assert ended(started, name)["request_counts"]["completed"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_batch_goes_on_after_the_server_has_ended(number: signal.Signals, home: Path) -> None:
    command = [sys.executable, "-m", "codi_hub.cli", "serve", "--port", "0", "--no-page", "--device", "cpu", "-q"]
    wanted = [entry(k, num_inference_steps=2) for k in range(40)]
    del wanted[3]["body"]["seed"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            url = process.stdout.readline().strip()
            name = requests.post(f"{url}/v1/batches", json={"requests": wanted}, timeout=30).json()["id"]
            while not requests.get(f"{url}/v1/batches/{name}", timeout=30).json()["request_counts"]["completed"]:
                time.sleep(0.02)
            process.send_signal(number)
            assert process.wait(60) == (-9 if number == signal.SIGKILL else 0)
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()
    folder = Path(os.environ["CODI_HOME"]) / "batches" / name
    first = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.json")}
    assert 0 < len(first) < 40
    with serving(home) as started:
        batch = ended(started, name)
        assert batch["request_counts"] == {"total": 40, "completed": 40, "failed": 0}
        assert len(answers(started, name)) == 40
    again = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.json")}
    assert {name: again[name] for name in first} == first  # nothing was made twice
    with Registry.open(home) as registry:
        (row,) = [one for one in registry.runs.list() if one.options.get("batch") == name]
        inputs = [item.input for item in registry.runs.items(row.id)]
    assert len(inputs) == len(set(inputs)) == 40
