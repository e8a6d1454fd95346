"""Encoded pairs and prompts: encoded when they are needed, once, and shared by runs that want the same."""

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import save_base, scheduler_config
from training import Make, equal, quiet, weights

from codi_hub import backbones, interrupts
from codi_hub.backbones.backbone import Backbone
from codi_hub.errors import InvalidInput, UsageError
from codi_hub.training.latents import Cache, PairFile
from codi_hub.training.pairs import PairMaker, PairsSpec
from codi_hub.training.prompts import PromptStore, text_digest
from codi_hub.training.records import Records

SPEC = PairsSpec("superres", {"scale": 2}, "leaves", 6, 32, 0)


@pytest.fixture
def created(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The indices of pairs that were encoded, in order."""
    seen: list[int] = []
    encoded = PairFile._encoded

    def counted(pairs: PairFile, row: int) -> Any:
        seen.append(row)
        return encoded(pairs, row)

    monkeypatch.setattr(PairFile, "_encoded", counted)
    return seen


def build(spec: PairsSpec, indices: range, base: Backbone, folder: Path, **named: Any) -> Cache:
    """Return all pairs of a file."""
    pairs = PairFile(spec, indices, base, folder, **named)
    return pairs.rows(torch.arange(len(pairs)))


def same(one: Cache, other: Cache) -> bool:
    return (
        torch.equal(one.x, other.x) and torch.equal(one.conditions, other.conditions) and one.prompts == other.prompts
    )


def test_the_same_pairs_are_encoded_once(base: Backbone, tmp_path: Path, created: list[int]) -> None:
    first, second = (build(SPEC, range(5), base, tmp_path) for _ in range(2))
    assert created == [0, 1, 2, 3, 4]
    assert same(first, second)
    assert first.x.dtype == torch.float16


def test_pairs_are_encoded_when_they_are_needed_and_stay_the_same(
    base: Backbone, tmp_path: Path, created: list[int]
) -> None:
    pairs = PairFile(SPEC, range(5), base, tmp_path / "a")
    assert created == []
    some = pairs.rows(torch.tensor([3, 1, 3]))
    assert created == [3, 1]
    everything = build(SPEC, range(5), base, tmp_path / "b")
    assert same(some, everything.rows(torch.tensor([3, 1, 3])))
    again = PairFile(SPEC, range(5), base, tmp_path / "a")
    again.prepare(range(5))
    assert created[7:] == [0, 2, 4]  # those that were complete are kept
    assert same(again.rows(torch.arange(5)), everything)


def test_two_that_use_a_file_at_once_see_each_others_rows(base: Backbone, tmp_path: Path, created: list[int]) -> None:
    one, other = (PairFile(SPEC, range(5), base, tmp_path) for _ in range(2))
    one.prepare([0, 1])
    other.prepare([1, 2])
    one.prepare([2])
    assert created == [0, 1, 2]


@pytest.mark.slow
def test_other_pairs_are_cached_beside_them(base: Backbone, tmp_path: Path, created: list[int]) -> None:
    build(SPEC, range(5), base, tmp_path)
    for spec in (replace(SPEC, seed=1), replace(SPEC, size=40), replace(SPEC, options={"scale": 4})):
        build(spec, range(5), base, tmp_path)
    build(SPEC, range(4), base, tmp_path)
    with_targets = build(SPEC, range(5), base, tmp_path, with_targets=True)
    assert len(created) == 5 + 5 + 5 + 5 + 4 + 5
    assert with_targets.targets is not None
    again = build(SPEC, range(5), base, tmp_path)  # the first ones are still there
    assert len(created) == 29
    assert again.targets is None


@pytest.mark.slow
def test_latents_of_another_autoencoder_are_not_reused(tmp_path: Path, created: list[int]) -> None:
    """Two bases with equal U-Nets, and so with equal fingerprints."""
    config = scheduler_config("v_prediction", zero_snr=True)
    base = backbones.load(str(save_base(tmp_path / "base", config)))
    build(SPEC, range(2), base, tmp_path / "pairs")
    with torch.no_grad():
        next(base.vae.encoder.parameters()).mul_(2)
    build(SPEC, range(2), base, tmp_path / "pairs")
    with torch.no_grad():
        next(base.vae.decoder.parameters()).mul_(2)  # pairs do not depend on it
    build(SPEC, range(2), base, tmp_path / "pairs")
    assert created == [0, 1, 0, 1]


@pytest.mark.parametrize("suffix", [".jsonl", ".bin"])
@pytest.mark.parametrize("left", [None, 40, 0.5])
def test_what_is_missing_or_damaged_is_encoded_again(
    base: Backbone, tmp_path: Path, suffix: str, left: int | float | None
) -> None:
    whole = build(SPEC, range(5), base, tmp_path)
    file = next(tmp_path.glob(f"*{suffix}"))
    data = file.read_bytes()
    if left is None:
        file.unlink()
    else:
        file.write_bytes(data[: left if isinstance(left, int) else int(left * len(data))])
    for _ in range(2):
        assert same(build(SPEC, range(5), base, tmp_path), whole)


def test_bytes_that_changed_are_noticed(base: Backbone, tmp_path: Path, created: list[int]) -> None:
    whole = build(SPEC, range(5), base, tmp_path)
    file = next(tmp_path.glob("*.bin"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert same(build(SPEC, range(5), base, tmp_path), whole)
    assert created[5:] == [4]


@pytest.mark.slow
def test_pairs_of_a_task_that_changed_are_not_reused(
    base: Backbone, tmp_path: Path, created: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    build(SPEC, range(5), base, tmp_path)
    monkeypatch.setattr("codi_hub.tasks.superres.degrade", lambda image, scale, rng, preset: image[::scale, ::scale])
    build(SPEC, range(5), base, tmp_path)
    assert len(created) == 10


def test_a_folder_that_cannot_be_written_is_refused_before_any_pair(
    base: Backbone, tmp_path: Path, created: list[int]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"data\.cache_dir .*file: "):
        PairFile(SPEC, range(5), base, tmp_path / "file")
    assert created == []


def test_pairs_of_another_size_are_refused_at_once(base: Backbone, tmp_path: Path) -> None:
    spec = replace(SPEC, like="pairs", options={}, data=str(pictures(tmp_path)), size=33)
    with pytest.raises(InvalidInput, match="pairs of 33x33 px: sides must be multiples of 4"):
        PairFile(spec, range(2), base, tmp_path)


def pictures(folder: Path) -> Path:
    """A folder of two pairs of images."""
    from PIL import Image

    for side in ("condition", "target"):
        (folder / side).mkdir()
        for k in range(2):
            Image.new("RGB", (40, 40), (k, k, k)).save(folder / side / f"{k}.png")
    return folder


@pytest.mark.slow
def test_processes_create_pairs_ahead_and_leave_ctrl_c_to_the_main_one() -> None:
    spec = replace(SPEC, count=200)
    maker, alone = PairMaker(spec, 2), PairMaker(spec, 1)
    order = [*range(199, -1, -1)]
    maker.expect(order)
    first = maker.pair(199)
    for child in multiprocessing.active_children():
        for number in interrupts.SIGNALS:  # a terminal and a scheduler send them to all
            assert child.pid is not None
            os.kill(child.pid, number)
    found = [first, *(maker.pair(k) for k in order[1:])]
    assert all((a.target == alone.pair(k).target).all() for a, k in zip(found, order, strict=True))
    maker.close()


@pytest.mark.slow
def test_a_file_that_a_worker_cannot_read_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for k in range(3):
        Image.new("RGB", (40, 40), (k, k, k)).save(tmp_path / f"{k}.png")
    (tmp_path / "0.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])  # a whole header
    maker = PairMaker(PairsSpec("superres", {"scale": 2}, str(tmp_path), 80, 16, 0), 2)
    maker.expect(range(80))
    for k in range(80):
        maker.pair(k)
    maker.close()
    assert caplog.text.count(f"{tmp_path}/0.png") == 1


# ---- records


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((3,), value, dtype=torch.bfloat16), "b": torch.tensor(int(value))}


def test_records_survive_a_kill_at_any_byte(tmp_path: Path) -> None:
    """Whatever prefix of the log and of the data is on the disk, what is read is whole, and writing goes on."""
    path = tmp_path / "whole"
    records = Records(path)
    records.write([("x", tensors(1), "one")])
    records.write([("y", tensors(2), "two\n")])
    log, data = (path.with_name(f"whole{end}").read_bytes() for end in (".jsonl", ".bin"))
    for cut in range(0, len(log) + 1, 3):
        for left in (0, len(data) // 2, len(data) - 1, len(data)):
            (tmp_path / "cut.jsonl").write_bytes(log[:cut])
            (tmp_path / "cut.bin").write_bytes(data[:left])
            found = Records(tmp_path / "cut")
            for key, value in (("x", 1), ("y", 2)):
                read = found.read(key)
                assert read is None or torch.equal(read["a"], tensors(value)["a"])
            found.write([("z", tensors(3), "")])
            again = Records(tmp_path / "cut").read("z")
            assert again is not None
            assert int(again["b"]) == 3
    assert Records(path).text("y") == "two\n"


# ---- prompts


def test_prompts_are_encoded_once_and_kept_in_the_precision_of_the_base(
    base: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PromptStore(base, tmp_path)
    expected = base.embed_texts(["a red ball"])
    rows = store.rows(["", "a red ball", ""])
    assert torch.equal(rows["context"][1:2], expected["context"])
    assert torch.equal(rows["context"][0], rows["context"][2])
    assert rows["context"].dtype == base.dtype
    other = PromptStore(base, tmp_path)
    monkeypatch.setattr(base, "embed_texts", None)
    assert torch.equal(other.rows(["a red ball"])["context"], expected["context"])


def test_embeddings_of_another_text_encoder_or_precision_are_not_reused(tmp_path: Path) -> None:
    base = backbones.load(str(save_base(tmp_path / "base", scheduler_config("epsilon"))))
    digests = {text_digest(base), text_digest(base)}
    assert len(digests) == 1
    with torch.no_grad():
        base.text_modules()[0][0].get_input_embeddings().weight[50].mul_(1.1)  # a token that the probe does not have
    digests.add(text_digest(base))
    base.text_modules()[0].to(torch.bfloat16)
    digests.add(text_digest(base))
    assert len(digests) == 3


def test_released_text_encoders_come_back_for_as_long_as_a_prompt_needs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = backbones.load(str(save_base(tmp_path / "base", scheduler_config("epsilon"))))
    moves: list[str] = []
    module = base.text_modules()[0]
    module.to = lambda place: moves.append(str(place)) or module  # type: ignore[assignment, func-returns-value]
    base.release_text_encoders()
    assert moves == []  # they are where they shall be
    row = base.embed_texts(["a red ball"])
    monkeypatch.setattr(base, "embed_texts", lambda texts: row)
    monkeypatch.setattr(type(base), "device", torch.device("cuda"))
    base.release_text_encoders()
    assert moves == ["cpu"]
    base.embed(["a red ball"])
    base.embed(["a red ball"])  # known
    assert moves == ["cpu", "cuda", "cpu"]


# ---- the trainer


@pytest.mark.slow
def test_training_is_the_same_whether_pairs_were_encoded_before_or_are_on_demand(
    make: Make, tmp_path: Path, created: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(folder: str, rows: list[int], workers: int = 1) -> dict[str, torch.Tensor]:
        make.cache = PairFile(SPEC, range(6), make.base, tmp_path / folder, workers=workers)
        make.cache.prepare(rows)
        trainer = make(train_steps=5, batch=2, lr=1e-3)
        trainer.run(quiet)
        make.cache.close()
        return weights(trainer)

    before = trained("a", [0, 1, 2, 3, 4, 5])
    some = trained("b", [4])
    assert equal(before, some)
    monkeypatch.setattr("codi_hub.training.pairs.FEW", 2)
    assert equal(before, trained("c", [], workers=2))


def test_the_first_step_waits_for_its_own_pairs_alone(make: Make, tmp_path: Path, created: list[int]) -> None:
    make.cache = PairFile(replace(SPEC, count=40), range(40), make.base, tmp_path)
    trainer = make(train_steps=10, batch=2)
    known: list[int] = []
    step: Callable[[], dict[str, float]] = trainer.train_step

    def counted() -> dict[str, float]:
        known.append(len(created))
        return step()

    trainer.train_step = counted  # type: ignore[method-assign]
    trainer.run(quiet)
    assert known == [2, 6, 6, 14, 14, 14, 14, 20, 20, 20]  # of 1, 2, 4 and the last 3 steps
