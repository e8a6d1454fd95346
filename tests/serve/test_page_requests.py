"""Requests to the page's own routes: what a browser needs is answered, the rest of gradio's is not there."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from conftest import Running, serving
from corpus import encoded, photograph

from codi_hub.serve.web import trim

pytestmark = pytest.mark.slow
FILE = "/gradio_api/file="


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("home"), page=True, max_body="1MB", max_pixels=300_000) as started:
        assert started.get("/").status_code == 200
        yield started


@pytest.fixture(autouse=True)
def lives(shown: Running) -> Iterator[None]:
    yield
    assert shown.get("/health").status_code == 200


def uploaded(shown: Running, data: bytes = encoded(photograph(16, 16), "PNG")) -> str:
    answer = shown.post("/gradio_api/upload", files={"files": ("a.png", data)})
    assert answer.status_code == 200
    return answer.json()[0]


def joined(shown: Running, path: str) -> requests.Response:
    image = {"image": {"path": path, "meta": {"_type": "gradio.FileData"}}, "caption": None}
    (event,) = [one for one in shown.get("/config").json()["dependencies"] if one["queue"]]
    data = ["deblur:1", [image], None, "", 1, 1, "7", 1, "auto", "{}", None]
    body = {"data": data, "fn_index": event["id"], "session_hash": "abc", "event_data": None, "trigger_id": None}
    return shown.post("/gradio_api/queue/join", json=body)


def messages(shown: Running) -> Iterator[dict]:
    with requests.get(f"{shown.url}/gradio_api/queue/data?session_hash=abc", stream=True, timeout=60) as answer:
        for line in answer.iter_lines():
            if line.startswith(b"data:"):
                yield json.loads(line[5:])


def test_a_click_is_answered_with_the_files_of_a_result(shown: Running) -> None:
    assert joined(shown, uploaded(shown)).status_code == 200
    last = next(one for one in messages(shown) if one["msg"] == "process_completed")
    assert last["success"]
    status, slider, _, gallery, _ = last["output"]["data"]
    assert "1 of 1 images; deblur:1, seed" in status
    assert len(gallery) == 1
    for file in slider:
        answer = shown.get(FILE + file["path"])
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
        assert "default-src 'self'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", "../../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "https://example.org/a.png",
        "http://127.0.0.1:1/a.png", "", "\\etc\\passwd", "/proc/self/environ",
    ],
)  # fmt: skip
def test_files_of_the_server_and_links_are_not_answered(shown: Running, path: str) -> None:
    assert shown.get(FILE + path).status_code == 404
    if path:
        answer = joined(shown, path)
        assert answer.status_code == 400
        assert "links are never fetched" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/proxy=https://example.org"), ("GET", "/gradio_api/file/etc/passwd"),
        ("GET", "/monitoring"),
        ("POST", "/gradio_api/call/generate"), ("POST", "/gradio_api/vibe-edit"), ("GET", "/gradio_api/openapi.json"),
        ("POST", "/gradio_api/run-history/connect"), ("GET", "/no/such"), ("PUT", "/"), ("GET", "/login"),
        ("GET", "/gradio_api/deep_link"), ("POST", "/gradio_api/api/predict"), ("GET", "/assets"),
    ],
)  # fmt: skip
def test_what_the_page_does_not_use_is_not_there(shown: Running, method: str, path: str) -> None:
    answer = requests.request(method, shown.url + path, timeout=30)
    assert answer.status_code in (404, 405)
    assert answer.json()["error"]["type"] in ("not_found_error", "invalid_request_error")


def test_limits_and_origins_are_those_of_the_api(shown: Running) -> None:
    upload = "/gradio_api/upload"
    large = shown.post(upload, files={"files": ("a.png", b"x" * 1_100_000)})
    assert large.status_code == 413
    other = shown.post(upload, files={"files": ("a.png", b"x")}, headers={"Origin": "https://example.org"})
    assert other.status_code == 403
    assert shown.get("/", headers={"Host": "example.org"}).status_code == 403
    for body in (b"{", b"[" * 100_000, b"null"):
        assert 400 <= shown.post("/gradio_api/queue/join", data=body).status_code < 500
    assert joined(shown, uploaded(shown, b"no image")).status_code == 200
    last = next(one for one in messages(shown) if one["msg"] == "process_completed")
    assert "image: not a readable image" in last["output"]["data"][0]


def test_a_stop_ends_what_browsers_keep_open(tmp_path: Path) -> None:
    ended, begun = [], threading.Event()
    with serving(tmp_path, page=True) as started:
        assert started.get("/").status_code == 200

        def listen() -> None:
            with requests.get(f"{started.url}/gradio_api/heartbeat/abc", stream=True, timeout=60) as answer:
                parts = answer.iter_content()
                first = next(parts)
                begun.set()
                ended.append(first + b"".join(parts))

        thread = threading.Thread(target=listen)
        thread.start()
        assert begun.wait(60)
        started.server.stop()
        thread.join(20)
        assert not thread.is_alive()
    assert ended[0].startswith(b"data: ALIVE")


def test_the_api_needs_no_page(tmp_path: Path) -> None:
    with serving(tmp_path, page=False) as started:
        assert started.get("/").status_code == 404
        assert started.get("/v1/models").status_code == 200


def test_the_oldest_files_go_first(tmp_path: Path) -> None:
    for age, name in enumerate("abc"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(b"x" * 10)
        os.utime(tmp_path / name / "x.png", (100 - age, 100 - age))
    trim(tmp_path, 20)
    assert sorted(file.parent.name for file in tmp_path.rglob("*.png")) == ["a", "b"]
