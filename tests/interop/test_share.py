"""Push and pull with the hub's own client against a hub on loopback, and with file systems of fsspec."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import yaml
from hub_server import TOKEN, HubServer, Repo, sha
from huggingface_hub import constants
from huggingface_hub.utils import _http, close_session
from PIL import Image
from tiny import save_base, scheduler_config
from xet_store import XetStore

import codi_hub
from codi_hub.catalog import Catalog

NAME = "owner/name"
CREATED = [
    f"GET /api/models/{NAME}",
    "POST /api/repos/create",
    "POST /api/validate-yaml",
    f"POST /api/models/{NAME}/preupload/main",
    f"POST /{NAME}.git/info/lfs/objects/batch",
    "PUT /upload/HASH",
    "POST /verify",
    f"POST /api/models/{NAME}/commit/main",
]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A hub that the client takes for its own; without Xet, and without waiting between attempts."""
    server = HubServer()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda _: None, time=time.time, monotonic=time.monotonic))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    close_session()
    yield server
    close_session()
    server.close()


@pytest.fixture
def soft(codi: Callable[..., Any]) -> None:
    """A task without adapters, like deblur."""
    assert codi("task", "add", "soft", "--like", "deblur").code == 0


@pytest.fixture
def pushed(hub: HubServer, codi: Callable[..., Any], soft: None) -> HubServer:
    """The hub with the bundled adapter of deblur on it."""
    answer = codi("push", "deblur", NAME)
    assert (answer.code, answer.err) == (0, "")
    hub.asked.clear()
    return hub


def refused(codi: Callable[..., Any], *arguments: Any) -> str:
    """Return the one line with which a command is refused; nothing is registered then."""
    answer = codi(*arguments)
    assert answer.code in (1, 2), answer
    assert (answer.out, answer.err[:7], answer.err.count("\n")) == ("", "Error: ", 1)
    with Catalog.open() as catalog:
        assert [row for row in catalog.list() if not row.bundled] == []
        assert list(catalog.registry.home.glob(".codi-*")) == []
    return str(answer.err)


def files_of(hub: HubServer, repo: str = NAME) -> dict[str, bytes]:
    return hub.repos[repo].commits[hub.repos[repo].head]


# ---- push


def test_a_push_creates_the_repository_and_commits_everything_at_once(
    hub: HubServer, codi: Callable[..., Any], tmp_path: Path
) -> None:
    answer = codi("push", "deblur", NAME, "--private", "--json")
    assert (answer.code, answer.err) == (0, "")
    assert hub.lines == CREATED
    cdn = next(one for one in hub.asked if one.method == "PUT")
    assert "authorization" not in cdn.headers  # the token does not leave the hub
    others = [one for one in hub.asked if one is not cdn]
    assert {one.headers.get("authorization") for one in others} == {f"Bearer {TOKEN}"}
    assert hub.repos[NAME].private
    assert len(hub.repos[NAME].commits) == 2
    files = files_of(hub)
    assert set(files) == {".gitattributes", "README.md", "adapter.json", "adapter.safetensors"}
    with Catalog.open() as catalog:
        row = catalog.registry.adapters.resolve("deblur")
        assert files["adapter.safetensors"] == catalog.registry.adapters.file(row, "adapter.safetensors").read_bytes()
    assert json.loads(files["adapter.json"])["weights"] == row.sha256 == sha(files["adapter.safetensors"])
    document = json.loads(answer.out)
    assert document["files"] == {name: len(files[name]) for name in document["files"]}
    assert document["url"] == f"{hub.url}/{NAME}/commit/{hub.repos[NAME].head}"


def test_the_card_has_metadata_scores_and_images(hub: HubServer, codi: Callable[..., Any], tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    exif = Image.Exif()
    exif[0x010E] = "a secret"
    for k in range(10):
        Image.new("RGBA", (1600, 800), (k, 9, 9, 255)).convert("RGB").save(images / f"{k}.jpg", exif=exif)
    assert codi("push", "deblur", NAME, "--examples", images, "--licence", "mit").code == 0
    files = files_of(hub)
    shown = sorted(name for name in files if name.startswith("examples/"))
    assert shown == [f"examples/{k}.jpg" for k in range(1, 9)]
    (tmp_path / "one.jpg").write_bytes(files["examples/1.jpg"])
    with Image.open(tmp_path / "one.jpg") as image:
        assert (image.size, dict(image.getexif())) == ((768, 384), {})
    card = huggingface_hub.ModelCard(files["README.md"].decode())
    data = card.data.to_dict()
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == ("mit", "codi-hub", "image-to-image")
    assert data["tags"] == ["codi-hub", "deblur", "residual", "regression"]
    assert "base_model" not in data  # nano is on no hub
    (index,) = data["model-index"]
    metrics = {(one["name"], one["args"]["steps"]): one["value"] for one in index["results"][0]["metrics"]}
    with Catalog.open() as catalog:
        scores = catalog.registry.adapters.resolve("deblur").metrics["by_steps"]
    assert metrics["psnr, 4 steps", 4] == scores["4"]["psnr"]
    assert "The base `nano` is under the licence apache-2.0." in card.text
    assert "codi pull owner/name" in card.text
    assert all(f"]({name})" in card.text for name in shown)


def test_a_second_push_changes_only_what_differs_and_keeps_one_set_of_additions(
    pushed: HubServer, codi: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    head = pushed.repos[NAME].head
    assert codi("push", "deblur", NAME).code == 0
    assert pushed.repos[NAME].head == head  # nothing differs
    assert codi("push", "deblur", NAME, "--examples", tmp_path / "images").code == 0
    assert not any(one.method == "PUT" and len(one.body) > 10**5 for one in pushed.asked)
    assert "examples/1.jpg" in files_of(pushed)
    assert codi("pull", NAME, "--task", "soft").code == 0
    assert codi("cp", "soft:1", "deblur").code == 0
    assert codi("push", "soft:1", "owner/other").code == 0
    assert files_of(pushed, "owner/other")["README.md"].count(b"codi push") == 1
    assert codi("push", "deblur:1", NAME).code == 0
    assert not any(name.startswith("examples/") for name in files_of(pushed))  # of an earlier card


def test_a_dry_run_asks_the_hub_nothing(hub: HubServer, codi: Callable[..., Any]) -> None:
    answer = codi("push", "deblur", NAME, "--dry-run")
    assert answer.out.startswith(f"Would write deblur:1 for base nano to {NAME}, licence apache-2.0:\nadapter.safe")
    assert hub.asked == []


def test_a_name_that_is_taken_is_refused(pushed: HubServer, codi: Callable[..., Any]) -> None:
    pushed.repos["owner/bert"] = Repo()
    pushed.repos["owner/bert"].commit({"model.safetensors": b"", "README.md": b""})
    assert "owner/bert exists and is not an adapter of CoDi Hub: choose another" in refused(
        codi, "push", "deblur", "owner/bert"
    )
    line = refused(codi, "push", "depth", NAME)
    assert f"{NAME} exists with an adapter for the task deblur on the base nano: choose another name" in line
    assert f"{NAME} exists and is public" in refused(codi, "push", "deblur", NAME, "--private")
    assert len(pushed.repos[NAME].commits) == 2
    for name in ("name", "a/b/c", "../b", "a b/c", "-a/b"):
        assert "neither OWNER/NAME" in refused(codi, "push", "deblur", "--", name)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (("POST /api/repos/create", 401), "set HF_TOKEN, or log in with `hf auth login` (401)"),
        (("POST /api/repos/create", 403), "the token is not allowed to do that"),
        (("POST /api/repos/create", 409), "the name is taken"),
        (("preupload", 403), "the token is not allowed to do that"),
        (("objects/batch", 404), "there is no such repository"),
        (("PUT /upload", 500), "the hub failed (500)"),
        (("PUT /upload", 0), "the hub cannot be reached"),
        (("commit/main", 412), "the repository has changed meanwhile: try again"),
        (("commit/main", 418), "refused (418)"),
        (("validate-yaml", 400), "refused (400)"),
    ],
    ids=str,
)
def test_what_the_hub_refuses_is_one_line_and_the_next_push_goes_on(
    hub: HubServer, codi: Callable[..., Any], fault: tuple[str, int], message: str
) -> None:
    hub.faults = [fault]
    line = refused(codi, "push", "deblur", NAME)
    assert line.startswith(f"Error: {NAME}: ")
    assert message in line
    assert TOKEN not in line
    if NAME in hub.repos:
        assert set(files_of(hub)) == {".gitattributes"}  # nothing of the adapter
    uploaded = bool(hub.objects)
    hub.faults, hub.asked[:] = [], []
    assert codi("push", "deblur", NAME).code == 0
    assert len(files_of(hub)) == 4
    assert ("PUT /upload/HASH" in hub.lines) is not uploaded  # it is not uploaded twice


def test_no_token_no_network_and_no_hub_are_one_line(
    hub: HubServer, codi: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "(401)" in refused(codi, "push", "deblur", NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set: unset it" in refused(codi, "push", "deblur", NAME)
    assert "not in the cache, and the hub cannot be reached" in refused(codi, "pull", NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.close()
    close_session()
    assert "the hub cannot be reached" in refused(codi, "push", "deblur", NAME)


# ---- the base's licence


FLUX = {"license": "other", "license_name": "flux-1-dev-non-commercial-license", "license_link": "LICENSE.md"}


def test_the_licence_of_a_base_is_that_of_its_model_card(
    hub: HubServer, codi: Callable[..., Any], tmp_path: Path
) -> None:
    base = save_base(tmp_path / "tiny", scheduler_config("v_prediction", zero_snr=True))
    assert codi("base", "add", "tiny", base).code == 0
    register_on(codi, "tiny", tmp_path)
    words = ("push", "deblur", NAME, "--base", "tiny", "--dry-run")
    assert codi(*words).err == "The licence of base tiny is not known: the card says so.\n"
    (base / "README.md").write_text(f"---\n{yaml.safe_dump(FLUX)}extra_gated_prompt: Accept\n---\n# A base\n")
    assert codi(*words).err == (
        "Base tiny is gated on the hub: its terms bind those who use the adapter.\n"
        "Base tiny excludes commercial use (flux-1-dev-non-commercial-license), and so does the adapter.\n"
    )
    assert codi(*words[:-1]).code == 0
    text = files_of(hub)["README.md"].decode()
    assert {key: huggingface_hub.ModelCard(text).data.to_dict()[key] for key in FLUX} == FLUX
    assert "is under the licence flux-1-dev-non-commercial-license (LICENSE.md)." in text
    for broken in ("---\n: [\n---\n", "no front matter", "---\n- a list\n---\n"):
        (base / "README.md").write_text(broken)
        assert "is not known" in codi(*words).err


def register_on(codi: Callable[..., Any], base: str, folder: Path) -> None:
    """Register the bundled adapter of deblur as one for another base."""
    assert codi("export", "deblur", "--format", "codi", "-o", folder / "own").code == 0
    with Catalog.open() as catalog:
        row = catalog.registry.bases.get(base)
        path = folder / "own" / "adapter.json"
        record = json.loads(path.read_text())
        record["base"] = {"name": base, "family": row.family, "sketch": row.sketch}
        path.write_text(json.dumps(record))
    assert codi("install", folder / "own", "--base", base).code == 0


def test_the_licence_of_a_hub_model_is_what_the_hub_says(
    hub: HubServer, codi: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from codi_hub.interop.licence import Licence, licence_of
    from codi_hub.registry import BaseRow

    gone = BaseRow("gone", "/no/longer/there", "0" * 16, None, False, False, "")
    assert licence_of(gone) == Licence()  # no path of this machine on a card
    assert hub.asked == []
    row = BaseRow("dev", "black/dev", "0" * 16, None, False, False, "")
    assert licence_of(row) == Licence(repo="black/dev")
    hub.repos["black/dev"] = Repo(gated="auto", card=FLUX)
    hub.repos["black/dev"].commit({"README.md": b"---\nlicense: mit\n---\n"})
    found = licence_of(row)
    assert (found.label, found.gated, found.non_commercial) == (FLUX["license_name"], True, True)
    assert found.repo == "black/dev"
    huggingface_hub.HfApi().hf_hub_download("black/dev", "README.md")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert licence_of(row).id == "mit"  # the card in the cache


@pytest.mark.parametrize(
    ("name", "excluded"),
    [
        ("cc-by-nc-4.0", True),
        ("sai-nc-community", True),
        ("flux-1-dev-non-commercial-license", True),
        ("openrail++", False),
        ("creativeml-openrail-m", False),
        ("stabilityai-ai-community", False),
        ("apache-2.0", False),
    ],
)
def test_licences_that_exclude_commercial_use_are_recognised(name: str, excluded: bool) -> None:
    from codi_hub.interop.licence import Licence

    assert Licence(name).non_commercial is excluded
    assert Licence("other", name).non_commercial is excluded


# ---- pull


def test_a_pull_downloads_three_files_and_registers_them(
    pushed: HubServer, codi: Callable[..., Any], tmp_path: Path
) -> None:
    pushed.repos[NAME].commits[pushed.repos[NAME].head]["examples/1.jpg"] = b"not asked for"
    pushed.repos[NAME].commits[pushed.repos[NAME].head]["model.ckpt"] = b"not asked for"
    answer = codi("pull", NAME, "--task", "soft", "--name", "theirs", "--json")
    assert (answer.code, answer.err) == (0, "")
    document = json.loads(answer.out)
    assert (document["adapter"], document["created"], document["source"]) == ("soft:1", True, NAME)
    fetched = {one.path.rpartition("/")[2] for one in pushed.asked if "/resolve/" in one.path}
    assert fetched == {"README.md", "adapter.json", "adapter.safetensors"}
    cdn = [one for one in pushed.asked if one.path.startswith("/cdn/")]
    assert cdn
    assert all("authorization" not in one.headers for one in cdn)
    with Catalog.open() as catalog:
        assert catalog.verify() == []
        assert catalog.show("soft:theirs")["sha256"] == sha(files_of(pushed)["adapter.safetensors"])


def test_what_is_there_already_is_not_downloaded(pushed: HubServer, codi: Callable[..., Any]) -> None:
    answer = codi("pull", NAME)
    assert answer == (0, "deblur:1 for base nano has these weights already; nothing was registered.\n", "")
    dry = codi("pull", NAME, "--task", "soft", "--dry-run")
    assert dry == (0, "Would register an adapter of kind residual for task soft and base nano.\n", "")
    assert not any(one.path.startswith("/cdn/") for one in pushed.asked)
    refused(codi, "show", "soft:1")


def test_a_revision_is_taken_by_its_name(pushed: HubServer, codi: Callable[..., Any]) -> None:
    first = pushed.repos[NAME].head
    pushed.repos[NAME].commit({"README.md": b"moved"})
    assert f"{NAME} is not an adapter of CoDi Hub: it has no adapter.json" in refused(codi, "pull", NAME)
    assert "no such repository or revision" in refused(codi, "pull", f"{NAME}@v2")
    assert "name a revision after the @" in refused(codi, "pull", f"{NAME}@")
    assert codi("pull", f"{NAME}@{first}", "--task", "soft").code == 0


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_file_that_was_changed_is_refused(pushed: HubServer, codi: Callable[..., Any], when: str) -> None:
    """In the repository itself, or on its way."""
    files = files_of(pushed)
    weights = files["adapter.safetensors"]
    changed = weights[:-1] + bytes([weights[-1] ^ 1])
    if when == "before":
        files["adapter.safetensors"] = changed
    else:
        pushed.objects[sha(weights)] = changed
    assert "adapter.safetensors: damaged or altered" in refused(codi, "pull", NAME, "--task", "soft")
    pushed.objects[sha(weights)] = weights
    pushed.repos[NAME].commit(files | {"adapter.safetensors": weights})
    assert codi("pull", NAME, "--task", "soft").code == 0  # what the cache has is not believed


def test_a_download_that_is_cut_goes_on_where_it_was(
    pushed: HubServer, codi: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    pushed.cut_downloads = 1
    assert codi("pull", NAME, "--task", "soft").code == 0
    ranges = [one.headers["range"] for one in pushed.asked if "range" in one.headers]
    assert len(ranges) == 1
    assert int(ranges[0].removeprefix("bytes=").rstrip("-")) > 0


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (("GET /api/models", 401), "(401)"),
        (("GET /api/models", 403), "accept the repository's terms (403)"),
        (("GET /api/models", 404), "there is no such repository"),
        (("GET /api/models", 500), "the hub failed (500)"),
        (("HEAD .*safetensors", 500), "the hub failed (500)"),
        (("GET /cdn", 503), "the hub failed (503)"),
        (("HEAD .*README.md", 403), "(403)"),
    ],
    ids=str,
)
def test_what_cannot_be_had_is_one_line(
    pushed: HubServer, codi: Callable[..., Any], fault: tuple[str, int], message: str
) -> None:
    pushed.faults = [fault]
    assert message in refused(codi, "pull", NAME, "--task", "soft")


def test_repositories_that_are_no_adapter_are_refused(
    hub: HubServer, codi: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, files in {
        "owner/pickles": {"adapter.bin": b"", "adapter.json": b"{}"},
        "owner/model": {"model.safetensors": b""},
        "owner/half": {"adapter.json": b"{}"},
        "owner/huge": {"adapter.json": b" " * (17 << 20), "adapter.safetensors": b"", "README.md": b""},
        "owner/junk": {"adapter.json": b"{}", "adapter.safetensors": b"", "README.md": b""},
        "owner/mute": {"adapter.json": b"{}", "adapter.safetensors": b""},
    }.items():
        hub.repos[name] = Repo()
        hub.repos[name].commit(files)
    assert "owner/pickles has only pickles, which can run code" in refused(codi, "pull", "owner/pickles")
    assert "it has no adapter.json" in refused(codi, "pull", "owner/model")
    assert "it has no adapter.safetensors" in refused(codi, "pull", "owner/half")
    assert "it has no README.md" in refused(codi, "pull", "owner/mute")
    assert "which no such file of an adapter has" in refused(codi, "pull", "owner/huge")
    assert "owner/junk: adapter.json: task: field required" in refused(codi, "pull", "owner/junk")
    assert not any(one.path.startswith("/cdn/") for one in hub.asked)
    assert "neither OWNER/NAME" in refused(codi, "pull", "nowhere")


def test_without_the_network_a_pull_takes_the_cache(
    pushed: HubServer, codi: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert codi("pull", NAME, "--task", "soft").code == 0
    assert codi("rm", "soft:1").code == 0
    pushed.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert codi("pull", NAME, "--task", "soft", "-q") == (0, "soft:2\n", "")
    assert pushed.asked == []


CALLS = """
import sys
from codi_hub import cli
for line in sys.argv[1:]:
    try:
        cli.main(line.split())
    except SystemExit as stopped:
        if stopped.code:
            raise
"""


@pytest.mark.slow
def test_with_xet_and_the_clients_own_variables_an_adapter_goes_there_and_back(
    hub: HubServer, home: Path, tmp_path: Path
) -> None:
    """In a process of its own, which is told by HF_ENDPOINT, HF_TOKEN and HF_HOME; the client uses Xet by itself."""
    store = hub.xet = XetStore(hub)
    weights = (Path(codi_hub.__file__).parent / "nano" / "deblur" / "adapter.safetensors").read_bytes()
    hub.objects[sha(weights)] = weights  # the hub has it from Xet's store
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf")}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1"}
    lines = (f"push deblur {NAME}", "task add soft --like deblur", f"pull {NAME} --task soft")
    command = [sys.executable, "-c", CALLS, *lines]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("Registered soft:1 for base nano, of kind residual.\n")
    (xorb,) = store.xorbs
    assert f"GET /xorb/{xorb}" in [f"{one.method} {one.path}" for one in hub.asked]
    assert not any(line.startswith(("PUT /upload/", "GET /cdn/")) for line in hub.lines)
    assert list((tmp_path / "hf" / "hub" / "models--owner--name" / "snapshots").iterdir())
    with Catalog.open() as catalog:
        assert catalog.show("soft:1")["sha256"] == sha(weights)


# ---- fsspec


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/store/soft" if request.param == "file" else f"memory://{tmp_path.name}/soft"


def test_any_file_system_of_fsspec_carries_an_adapter(
    codi: Callable[..., Any], soft: None, place: str, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    assert codi("push", "deblur", place, "--dry-run").code == 0
    assert "is not an adapter: it has no adapter.json" in refused(codi, "pull", place)
    assert codi("push", "deblur", place, "--examples", tmp_path / "images").code == 0
    assert codi("push", "deblur", place).out == f"{place} has this adapter already; nothing was written.\n"
    assert "has another adapter" in refused(codi, "push", "depth", place)
    assert "private: only" in refused(codi, "push", "deblur", place, "--private").replace("--private", "private")
    assert codi("pull", place, "--task", "soft", "-q") == (0, "soft:1\n", "")


def test_what_is_below_an_url_is_checked(
    codi: Callable[..., Any], soft: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, folder = f"file://{tmp_path}/store", tmp_path / "store"
    folder.mkdir()
    (folder / "letter.txt").touch()
    assert "has letter.txt, which is not an adapter's" in refused(codi, "push", "deblur", place)
    (folder / "letter.txt").unlink()
    assert codi("push", "deblur", place).code == 0
    content = (folder / "adapter.safetensors").read_bytes()
    (folder / "adapter.safetensors").write_bytes(content[:-1])
    assert "damaged or altered" in refused(codi, "pull", place, "--task", "soft")
    (folder / "README.md").write_bytes(b"x" * (2 << 20))
    assert "README.md has over 1048576 bytes" in refused(codi, "pull", place, "--task", "soft")
    (folder / "README.md").unlink()
    assert "it has no README.md" in refused(codi, "pull", place, "--task", "soft")
    assert "no file system is called nosuch" in refused(codi, "push", "deblur", "nosuch://there")
    assert "//there" in refused(codi, "push", "deblur", "nosuch://me:secret@there")


def test_a_push_below_an_url_that_fails_leaves_nothing(
    codi: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.local import LocalFileSystem

    real = LocalFileSystem.open

    def full(self: Any, path: str, mode: str = "rb", **more: Any) -> Any:
        if path.endswith("README.md") and "w" in mode:
            raise OSError(28, "No space left on device")
        return real(self, path, mode, **more)

    monkeypatch.setattr(LocalFileSystem, "open", full)
    line = refused(codi, "push", "deblur", f"file://{tmp_path}/store")
    assert line.endswith("/store: No space left on device\n")
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []
