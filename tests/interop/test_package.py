"""An adapter as a folder or a zip: carried from one home into another, and everything that is refused."""

from __future__ import annotations

import json
import pickle
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_base, scheduler_config

import codi_hub
from codi_hub.catalog import Catalog
from codi_hub.interop import package
from codi_hub.registry.store import sha256

NAMES = ("README.md", "adapter.json", "adapter.safetensors")


@pytest.fixture
def sent(codi: Callable[..., Any], tmp_path: Path) -> Path:
    """The folder of an adapter for a task that this home has, but without these weights: `soft`, like deblur."""
    folder = tmp_path / "sent"
    shutil.copytree(Path(codi_hub.__file__).parent / "nano" / "deblur", folder)
    rewrite(folder, weights=sha256(folder / "adapter.safetensors"))
    assert codi("task", "add", "soft", "--like", "deblur").code == 0
    return folder


def rewrite(folder: Path, **fields: Any) -> None:
    """Change fields of an adapter's record; a value of None takes it away."""
    path = folder / "adapter.json"
    record = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))


def zipped(folder: Path, top: str = "", **entries: bytes) -> Path:
    """Zip a folder's files, below `top`, with further entries."""
    out = folder.with_suffix(".zip")
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for path in sorted(folder.iterdir()):
            file.write(path, top + path.name)
        for name, content in entries.items():
            file.writestr(name, content)
    return out


def refused(codi: Callable[..., Any], *arguments: Any) -> str:
    """Return the line with which an installation is refused; nothing is registered then, and nothing left behind."""
    answer = codi("install", *arguments)
    assert answer.code in (1, 2), answer
    assert answer.out == ""
    assert answer.err.startswith("Error: ")
    assert answer.err.count("\n") == 1
    with Catalog.open() as catalog:
        assert [row for row in catalog.list() if not row.bundled] == []
        assert list(catalog.registry.home.glob("blobs/sha256/*/*")) == []
        assert list(catalog.registry.home.glob(".codi-*")) == []
    return answer.err


# ---- there and back


@pytest.mark.parametrize("form", ["folder", "zip", "zip of a folder", "zip of a Mac"])
def test_an_adapter_is_carried_into_another_home(
    codi: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: Path, form: str
) -> None:
    with Catalog.open() as catalog:
        before = catalog.show("deblur")
    path = sent
    if form == "zip":
        path = tmp_path / "deblur.zip"
        assert codi("export", "deblur", "--format", "codi", "-o", path).code == 0
    elif form != "folder":
        mac = {"__MACOSX/sent/._adapter.json": b"x", "sent/.DS_Store": b"y"} if form == "zip of a Mac" else {}
        path = zipped(sent, "sent/", **mac)
    monkeypatch.setenv("CODI_HOME", str(tmp_path / "elsewhere"))
    assert codi("task", "add", "soft", "--like", "deblur").code == 0
    answer = codi("install", path, "--task", "soft", "--name", "theirs", "--json")
    assert (answer.code, answer.err) == (0, "")
    document = json.loads(answer.out)
    assert (document["adapter"], document["created"], document["tags"]) == ("soft:1", True, ["latest", "theirs"])
    with Catalog.open() as catalog:
        after = catalog.show("soft:theirs")
        assert catalog.verify() == []
    assert after["config"] == before["config"] | {"weights": before["sha256"]}
    same = ("kind", "steps", "metrics", "score", "method", "sha256", "parameters", "bytes", "card")
    assert {key: after[key] for key in same} == {key: before[key] for key in same}


def test_one_that_is_there_already_changes_nothing(codi: Callable[..., Any], sent: Path) -> None:
    answer = codi("install", sent)
    assert answer == (0, "deblur:1 for base nano has these weights already; nothing was registered.\n", "")
    assert codi("install", sent, "--name", "good", "-q") == (0, "deblur:1\n", "")
    assert codi("show", "deblur:good", "-q").out == "deblur:1\n"


def test_an_export_is_the_same_zip_every_time_and_replaces_only_exports(
    codi: Callable[..., Any], tmp_path: Path, sent: Path
) -> None:
    one, two = tmp_path / "one.zip", tmp_path / "two.zip"
    for out in (one, two):
        assert codi("export", "deblur", "--format", "codi", "-o", out).code == 0
    assert one.read_bytes() == two.read_bytes()
    assert "exists: choose another" in codi("export", "deblur", "--format", "codi", "-o", one).err
    assert "exists: choose another" in codi("export", "deblur", "--format", "codi", "-o", sent).err
    for out in (one, sent):
        assert codi("export", "deblur", "--format", "codi", "-o", out, "--overwrite").code == 0
    two.write_bytes(b"a letter")
    (sent / "letter.txt").touch()
    for out in (two, sent):
        answer = codi("export", "deblur", "--format", "codi", "-o", out, "--overwrite")
        assert (answer.code, answer.err.count("\n")) == (1, 1)
    assert two.read_bytes() == b"a letter"
    assert "--dtype bf16: format codi" in codi("export", "deblur", "--format", "codi", "-o", "x", "--dtype", "bf16").err


def test_an_adapter_without_a_card_gets_one(codi: Callable[..., Any], tmp_path: Path, sent: Path) -> None:
    rewrite(sent, task="soft")
    assert codi("install", sent).code == 0
    with Catalog.open() as catalog:
        row = catalog.registry.adapters.resolve("soft")
        files = {name: catalog.registry.adapters.file(row, name) for name in ("adapter.safetensors", "adapter.json")}
        folder = tmp_path / "bare"
        folder.mkdir()
        for name, path in files.items():
            shutil.copy(path, folder / name)
        values = {"kind": row.kind, "steps": 4, "parameters": row.parameters, "metrics": {}}
        ref = catalog.registry.adapters.add(folder, task="soft", base="nano", **values)[0].ref
    assert codi("export", ref, "--format", "codi", "-o", tmp_path / "with").code == 0
    assert (tmp_path / "with" / "README.md").read_text().startswith("# soft: a residual adapter")


# ---- what does not fit


def test_a_task_that_is_not_here_is_named(codi: Callable[..., Any], sent: Path) -> None:
    rewrite(sent, task="haze")
    line = refused(codi, sent)
    assert "--task: " in line
    assert "`codi task add haze --like TEMPLATE`" in line
    assert codi("install", sent, "--task", "soft").code == 0


def test_another_task_another_base_and_a_bad_tag_are_refused(
    codi: Callable[..., Any], tmp_path: Path, sent: Path
) -> None:
    assert "--task superres: it is like superres, and" in refused(codi, sent, "--task", "superres")
    assert "takes conditions of 3 channels" in refused(codi, sent_as(sent, "haze"), "--task", "depth")
    assert "no task 'nosuch'" in refused(codi, sent, "--task", "nosuch")
    assert "no base 'nosuch'" in refused(codi, sent, "--base", "nosuch")
    assert "cannot name a tag" in refused(codi, sent, "--task", "soft", "--name", "7")
    base = save_base(tmp_path / "tiny", scheduler_config("v_prediction", zero_snr=True))
    assert codi("base", "add", "tiny", base).code == 0
    line = refused(codi, sent_as(sent, "deblur"), "--base", "tiny", "--task", "soft")
    assert "--base tiny: the adapter was distilled for another base, nano: it fits nano; name" in line


def sent_as(folder: Path, task: str) -> Path:
    rewrite(folder, task=task)
    return folder


def test_other_weights_of_the_bases_family_need_permission(codi: Callable[..., Any], sent: Path) -> None:
    record = json.loads((sent / "adapter.json").read_text())
    record["base"]["sketch"] = {name: [-v for v in values] for name, values in record["base"]["sketch"].items()}
    rewrite(sent, base=record["base"])
    line = refused(codi, sent, "--task", "soft")
    assert "other weights of the same family" in line
    assert "--allow-base-mismatch" in line
    assert codi("install", sent, "--task", "soft", "--allow-base-mismatch").code == 0


# ---- damage and malice


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "adapter.safetensors").write_bytes(flipped(f)), "adapter.safetensors: damaged or altered"),
        (lambda f: (f / "adapter.safetensors").write_bytes(b""), "adapter.safetensors: damaged or altered"),
        (lambda f: rewrite(f, weights=None), "adapter.json: it does not have the SHA-256"),
        (lambda f: rewrite(f, kind="nosuch"), "kind 'nosuch', and this program knows"),
        (lambda f: rewrite(f, surprise=1), "adapter.json: surprise: extra inputs"),
        (lambda f: rewrite(f, format_version=9), "adapter.json: format version 9"),
        (lambda f: (f / "adapter.json").write_text("{"), "adapter.json: not an adapter record"),
        (lambda f: (f / "adapter.json").write_bytes(b" " * (17 << 20)), "over the limit of"),
        (lambda f: (f / "README.md").write_bytes(b"\xff\xfe\xff"), "README.md: not text in UTF-8"),
        (lambda f: (f / "README.md").write_bytes(b"x" * (2 << 20)), "README.md: 2097152 bytes, over the limit"),
        (lambda f: (f / "README.md").unlink(), "has no README.md: an adapter is"),
        (lambda f: (f / "adapter.safetensors").unlink(), "has no adapter.safetensors"),
        (lambda f: (f / "notes.txt").touch(), "has notes.txt beside"),
        (lambda f: (f / "inner.zip").touch(), "has inner.zip beside"),
        (lambda f: (f / "model.ckpt").touch(), "model.ckpt is a pickle, which can run code"),
        (lambda f: as_pickle(f), "adapter.safetensors: not readable as adapter weights"),
        (lambda f: as_integers(f), "is of I16, and weights are one of"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_whole_adapter_is_refused(
    codi: Callable[..., Any], sent: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(sent)
    assert message in refused(codi, sent, "--task", "soft")
    if "over the limit" in message:
        message = "which no such file of an adapter has"
    assert message in refused(codi, zipped(sent), "--task", "soft")


def flipped(folder: Path) -> bytes:
    content = bytearray((folder / "adapter.safetensors").read_bytes())
    content[-7] ^= 1
    return bytes(content)


def as_pickle(folder: Path) -> None:
    """A pickle under the weights' name, with the hash that the record has."""
    (folder / "adapter.safetensors").write_bytes(pickle.dumps({"conv.weight": [1.0]}))
    rewrite(folder, weights=sha256(folder / "adapter.safetensors"))


def as_integers(folder: Path) -> None:
    tensors = load_file(folder / "adapter.safetensors")
    save_file({name: value.view(torch.int16) for name, value in tensors.items()}, folder / "adapter.safetensors")
    rewrite(folder, weights=sha256(folder / "adapter.safetensors"))


def test_links_in_a_folder_are_not_followed(codi: Callable[..., Any], tmp_path: Path, sent: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a secret")
    (sent / "README.md").unlink()
    (sent / "README.md").symlink_to(secret)
    assert "README.md is a link or a folder" in refused(codi, sent, "--task", "soft")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("../adapter.json", "../adapter.json is a path out of the zip"),
        ("/etc/adapter.json", "/etc/adapter.json is a path out of the zip"),
        ("a/../../adapter.json", "is a path out of the zip"),
        ("..\\adapter.json", "is a path out of the zip"),
        ("inner.zip", "has inner.zip beside"),
        ("deep/er/adapter.json", "has deep/er/adapter.json beside"),
    ],
)
def test_entries_that_no_adapter_has_are_refused(
    codi: Callable[..., Any], tmp_path: Path, sent: Path, entry: str, message: str
) -> None:
    assert message in refused(codi, zipped(sent, **{entry: b"{}"}), "--task", "soft")
    assert not (tmp_path.parent / "adapter.json").exists()


def test_links_bombs_and_floods_in_a_zip_are_refused(codi: Callable[..., Any], tmp_path: Path, sent: Path) -> None:
    link = zipfile.ZipInfo("README.md")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    (sent / "README.md").unlink()
    with zipfile.ZipFile(zipped(sent), "a") as file:
        file.writestr(link, "/etc/passwd")
    assert "README.md is a link" in refused(codi, sent.with_suffix(".zip"), "--task", "soft")
    (sent / "README.md").write_text("card")
    with zipfile.ZipFile(zipped(sent), "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("README.md", "another")
    assert "has a file twice beside" in refused(codi, sent.with_suffix(".zip"), "--task", "soft")
    flood = {f"__MACOSX/{k}": b"" for k in range(200)}
    assert "203 entries" in refused(codi, zipped(sent, **flood), "--task", "soft")
    (sent / "adapter.safetensors").write_bytes(bytes(20 << 20))
    assert "expands to 20971520 bytes" in refused(codi, zipped(sent), "--task", "soft")


def test_a_zip_that_lies_about_its_sizes_or_is_cut_off_is_refused(codi: Callable[..., Any], sent: Path) -> None:
    whole = zipped(sent).read_bytes()
    path = sent.with_suffix(".zip")
    path.write_bytes(whole[: len(whole) // 2])
    assert "neither a folder nor a zip that can be read" in refused(codi, path, "--task", "soft")
    path.write_bytes(b"")
    assert "neither a folder nor a zip that can be read" in refused(codi, path, "--task", "soft")
    with zipfile.ZipFile(zipped(sent)) as file:
        size = file.getinfo("adapter.json").file_size
    path.write_bytes(whole.replace(size.to_bytes(4, "little"), (size - 9).to_bytes(4, "little")))
    assert "adapter.json is damaged" in refused(codi, path, "--task", "soft")
    assert "no folder or zip" in refused(codi, sent / "nothing", "--task", "soft")
    (sent / "adapter.ckpt").write_bytes(b"")
    assert "is a pickle" in refused(codi, sent / "adapter.ckpt", "--task", "soft")


def test_a_score_that_is_no_number_counts_as_none(codi: Callable[..., Any], sent: Path) -> None:
    rewrite(sent, task="soft", metrics={"psnr": {"a": 1}, "held_out_pairs": [1], "x\x1b[31m": "\x1b[31mred"})
    assert codi("install", sent).code == 0
    answer = codi("show", "soft")
    assert answer.code == 0
    assert "\x1b" not in answer.out


def test_a_card_cannot_control_the_terminal(codi: Callable[..., Any], sent: Path) -> None:
    (sent / "README.md").write_text("# A card\n\x1b]0;title\x07é\n", encoding="utf-8")
    rewrite(sent, task="soft")
    assert codi("install", sent).code == 0
    out = codi("show", "soft").out
    assert "# A card\n\\x1b]0;title\\x07é" in out


def test_files_and_limits_are_named_once() -> None:
    assert sorted(package.FILES) == sorted(NAMES)
