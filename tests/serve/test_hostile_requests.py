"""What strangers send: it is refused with a reason, and the server lives."""

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
import requests
from conftest import Running, serving
from corpus import bombs, broken, encoded, photograph
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codi_hub.config.serve import ServeOptions
from codi_hub.errors import CodiError, UsageError
from codi_hub.serve.server import serve

EDITS = "/v1/images/edits"
FILE = ("a.png", encoded(photograph(16, 16), "PNG"), "image/png")
FIELDS = {"model": "deblur", "num_inference_steps": "1"}


@pytest.fixture(autouse=True)
def lives(running: Running) -> Iterator[None]:
    """After every test the server answers."""
    yield
    assert running.get("/health").status_code == 200


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with a token, a page that may call it, and little patience."""
    home = tmp_path_factory.mktemp("home")
    with serving(home, token="secret", origins=("https://page.example",), max_time=1.0) as started:
        yield started


def raw(running: Running, data: bytes, wait: float = 10) -> bytes:
    """Send bytes as they are; return what comes until the server closes, or nothing more comes."""
    address = urlsplit(running.url)
    with socket.create_connection((address.hostname, address.port), 10) as connection:
        connection.sendall(data)
        connection.settimeout(wait)
        received = b""
        while b"\r\n\r\n" not in received and (part := connection.recv(65536)):
            received += part
        return received


@pytest.mark.parametrize("name", ["mask", "data"])
@pytest.mark.parametrize("value", ["/etc", "/no/such/file", "."])
def test_files_of_the_server_are_no_options(running: Running, name: str, value: str) -> None:
    fields = FIELDS | {"model": "inpaint", "options": json.dumps({name: value})}
    answer = running.post(EDITS, data=fields, files={"image": FILE})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(f"options.{name}: names files of the server")


@pytest.mark.parametrize("name", ["bomb-header.png", "bomb-smaller.png", "bomb-text.png", "bomb-profile.png"])
def test_bombs(running: Running, name: str) -> None:
    data, _ = bombs()[name]
    answer = running.post(EDITS, data=FIELDS, files={"image": ("a.png", data)})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "image")


@pytest.mark.parametrize("name", [name for name in broken() if name != "nan.tif"])
def test_broken_images(running: Running, name: str) -> None:
    answer = running.post(EDITS, data=FIELDS, files={"image": (f"../../{name}", broken()[name][0])})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "image")


def test_many_pixels_in_and_out(running: Running) -> None:
    large = ("a.png", encoded(photograph(600, 600), "PNG"))
    answer = running.post(EDITS, data=FIELDS, files={"image": large})
    assert "600x600 pixels, over the limit of 300000" in answer.json()["error"]["message"]
    several = [("image[]", ("a.png", encoded(photograph(500, 400), "PNG"))) for _ in range(2)]
    answer = running.post(EDITS, data=FIELDS, files=several)
    assert answer.json()["error"]["param"] == "image[1]"
    fields = FIELDS | {"model": "superres"}
    answer = running.post(EDITS, data=fields, files={"image": ("a.png", encoded(photograph(200, 200), "PNG"))})
    assert "the result would have 800x800 pixels, over the limit" in answer.json()["error"]["message"]


def test_a_body_over_the_limit_whether_it_says_so_or_not(running: Running) -> None:
    assert running.post(EDITS, data=b"x" * 1_000_001).status_code == 413
    chunks = (b"x" * 100_000 for _ in range(20))
    answer = running.post(EDITS, data=chunks, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert "over 1000000 bytes" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"model": "deblur", "options": {"a": ' + b"[" * 5000 + b"]" * 5000 + b"}}", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"<a/>", "text/xml", 415),
        (b"", "", 415),
        (b"nothing", "multipart/form-data", 400),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\n", "multipart/form-data; boundary=x", 400),
        (b"--x\r\n", "multipart/form-data; boundary=x", 400),
        (b"a=1&" * 1000, "application/x-www-form-urlencoded", 400),
    ],
)
def test_no_form_and_no_json(running: Running, body: bytes, kind: str, status: int) -> None:
    answer = running.post(EDITS, data=body, headers={"content-type": kind})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


def test_many_fields_and_many_files(running: Running) -> None:
    answer = running.post(EDITS, data={f"f{k}": "1" for k in range(70)}, files={"image": FILE})
    assert answer.status_code == 400
    answer = running.post(EDITS, data=FIELDS, files=[("image[]", FILE) for _ in range(20)])
    assert answer.status_code == 400


def test_methods_and_paths(running: Running) -> None:
    assert running.get(EDITS).status_code == 405
    for path in ("/", "/v1/../etc/passwd", "/v1/models/%2e%2e%2fx", "/v1/images/files/%00"):
        answer = running.get(path)
        assert answer.status_code == 404
        assert answer.json()["error"]["message"]


def test_floods_of_headers(running: Running) -> None:
    start = b"POST /v1/images/edits HTTP/1.1\r\nHost: localhost\r\n"
    for flood in (b"x: " + b"y" * 200_000 + b"\r\n\r\n", b"".join(b"x%d: y\r\n" % k for k in range(20_000)) + b"\r\n"):
        assert raw(running, start + flood).startswith(b"HTTP/1.1 4")


def test_a_full_queue_is_429_for_what_does_not_fit(running: Running) -> None:
    fields = {"model": "inpaint", "n": "10", "num_inference_steps": "1"}
    many = [("image[]", ("a.png", encoded(photograph(8, 8), "PNG"))) for _ in range(3)]
    answer = running.post(EDITS, data=fields, files=many)
    assert (answer.status_code, answer.json()["error"]["type"]) == (429, "rate_limit_error")
    assert answer.headers["retry-after"]


def test_a_client_that_leaves_is_forgotten(running: Running) -> None:
    body = json.dumps({"model": "deblur", "image": "aGVsbG8="}).encode()
    head = b"POST /v1/images/edits HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: 500\r\n\r\n"
    address = urlsplit(running.url)
    with socket.create_connection((address.hostname, address.port), 10) as connection:
        connection.sendall(head + body)
    assert running.get("/health").json()["waiting"] == 0


def test_names_of_elsewhere_and_pages_of_elsewhere(running: Running) -> None:
    answer = running.get("/v1/models", headers={"host": "evil.example"})
    assert (answer.status_code, "is called localhost" in answer.text) == (403, True)
    answer = running.post(EDITS, data=FIELDS, files={"image": FILE}, headers={"origin": "https://evil.example"})
    assert (answer.status_code, "may not call" in answer.text) == (403, True)
    own = running.get("/v1/models", headers={"origin": running.url})
    assert own.status_code == 200
    assert "access-control-allow-origin" not in own.headers


def test_a_token(private: Running) -> None:
    assert private.get("/health").status_code == 200
    for header in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer "},
        {"authorization": "secret\xff"},
    ):
        answer = private.get("/v1/models", headers=header)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    client = openai.OpenAI(base_url=f"{private.url}/v1", api_key="secret")
    assert [*client.models.list()]
    assert private.get("/v1/images/files/guessed.png").status_code == 404  # a browser follows a link without a token


def test_a_page_that_was_asked_for_may_call(private: Running) -> None:
    page = {"origin": "https://page.example", "authorization": "Bearer secret"}
    assert private.get("/v1/models", headers=page).headers["access-control-allow-origin"] == "https://page.example"
    asks = {"origin": "https://page.example", "access-control-request-method": "POST"}
    preflight = requests.options(private.url + EDITS, headers=asks, timeout=10)  # a browser asks without the token
    assert (preflight.status_code, preflight.headers["access-control-allow-methods"]) == (200, "GET, POST")
    assert private.get("/v1/models", headers={"origin": "https://evil.example"}).status_code == 403


def test_a_slow_body(private: Running) -> None:
    head = b"POST /v1/images/edits HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\n"
    begun = time.monotonic()
    answer = raw(private, head + b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - begun < 30  # it was not waited for forever


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_beyond_this_machine_only_with_a_token(host: str, home: Path) -> None:
    with pytest.raises(UsageError, match=f"^host {host}: others could use this server: set a token, or insecure$"):
        serve(ServeOptions(host=host), lambda url, server: None, home)


def test_a_port_that_is_taken(running: Running, home: Path) -> None:
    port = urlsplit(running.url).port
    with pytest.raises(CodiError, match=rf"^127\.0\.0\.1:{port} cannot be listened on: "):
        serve(ServeOptions(port=port), lambda url, server: None, home)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = ("model", "prompt", "n", "size", "response_format", "output_format", "seed", "num_inference_steps", "strength",
         "options", "image", "mask", "images")  # fmt: skip


BODIES = settings(
    max_examples=int(os.environ.get("CODI_TEST_BODIES", "200")),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@BODIES
@given(
    fields=st.dictionaries(st.sampled_from(("requests", "input_file_id", "metadata", "endpoint")), VALUES),
    body=st.dictionaries(st.sampled_from(NAMES), VALUES),
    entry=st.dictionaries(st.sampled_from(("custom_id", "url", "body")), VALUES),
)
def test_mutated_batches_are_never_a_fault_of_the_server(running: Running, fields: Any, body: Any, entry: Any) -> None:
    document = {"requests": [{"body": {"model": "deblur"} | body | {"image": None}}, entry]} | fields
    answer = running.post("/v1/batches", json=document)
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["error"]["message"]


@BODIES
@given(fields=st.dictionaries(st.sampled_from(NAMES), VALUES), cut=st.integers(0, 40))
def test_mutated_bodies_are_never_a_fault_of_the_server(running: Running, fields: dict[str, Any], cut: int) -> None:
    body = json.dumps({"model": "deblur"} | fields).encode()
    answer = running.post(EDITS, data=body[: len(body) - cut % 3], headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["error"]["message"]
