"""The control adapter on its base, and adapters on disk."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from safetensors.torch import load_file, save_file
from tiny import scheduler_config, stir, unet, with_unet
from torch import Tensor

from codi_hub import adapters
from codi_hub.adapters import ControlAdapter, format
from codi_hub.adapters.cache import Resident
from codi_hub.adapters.controlnet import FUSIONS, LUMA_DEVIATION, WHITEN, initialise_stem
from codi_hub.backbones.unet import FrozenBase
from codi_hub.errors import InvalidInput, Mismatch, UsageError

NO_GATES = ("residual", "gate")  # it replaces no features


def batch(base: FrozenBase, channels: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(z_t, t, prompt, condition)."""
    generator = torch.Generator().manual_seed(0)
    z_t = torch.randn(2, 4, 8, 12, generator=generator)
    condition = torch.rand(2, channels, 16, 24, generator=generator)
    return z_t, torch.tensor([999, 300]), base.embed(["a red ball", ""]), condition


def built(base: FrozenBase, kind: str = "control", **config: Any) -> ControlAdapter:
    torch.manual_seed(0)
    return adapters.build(kind, base, **config)


every_kind = pytest.mark.parametrize("kind", adapters.KINDS.names())
every_fusion = pytest.mark.parametrize(
    ("kind", "fusion"),
    [(kind, fusion) for kind in adapters.KINDS.names() for fusion in FUSIONS if (kind, fusion) != NO_GATES],
)


@pytest.mark.parametrize("pretrained", [True, False], ids=["pretrained", "random"])
@every_fusion
def test_a_new_adapter_is_the_base_bit_for_bit(any_base: FrozenBase, kind: str, fusion: str, pretrained: bool) -> None:
    adapter = built(any_base, kind, fusion=fusion, pretrained=pretrained)
    z_t, t, prompt, condition = batch(any_base)
    with torch.no_grad():
        expected = any_base.unet(z_t, t, prompt).sample
        found = adapter(any_base, z_t, t, prompt, condition)
        assert torch.equal(found, expected)
        assert not torch.equal(stir(adapter)(any_base, z_t, t, prompt, condition), expected)


@every_fusion
def test_every_tensor_has_moved_after_a_few_steps(any_base: FrozenBase, kind: str, fusion: str) -> None:
    adapter = built(any_base, kind, fusion=fusion)
    before = {name: value.clone() for name, value in adapter.named_parameters()}
    frozen = {name: value.clone() for name, value in any_base.named_parameters()}
    optimiser = torch.optim.AdamW(adapter.parameter_groups(1e-4), weight_decay=0.0)
    inputs = batch(any_base)
    # the fusion starts at zero, so what is behind it follows one step later; of a delta B A, B too starts at zero
    for _ in range(3 if kind == "lora" else 2):
        optimiser.zero_grad()
        (adapter(any_base, *inputs) - 1).square().mean().backward()
        optimiser.step()
    still = [name for name, value in adapter.named_parameters() if torch.equal(value, before[name])]
    # (a bias of keys shifts all that a softmax sees alike: its gradient is zero, but for rounding on some processors)
    assert [name for name in still if not name.endswith("k_proj.bias")] == []
    assert all(value.requires_grad for value in adapter.parameters())
    assert {id(p) for group in optimiser.param_groups for p in group["params"]} == {id(p) for p in adapter.parameters()}
    assert all(torch.equal(value, frozen[name]) for name, value in any_base.named_parameters())


def test_at_first_only_the_gates_move_and_by_the_papers_gradient(base: FrozenBase) -> None:
    """At mu = 0 the gradient into h_eta is exactly zero, and into mu it is <g, h_eta - h_theta>."""
    adapter = stir(built(base, fusion="gate"))
    with torch.no_grad():
        adapter.mu.zero_()
    generator = torch.Generator().manual_seed(0)
    shape = (len(adapter.mu), 2, 4)
    h, h_eta, g = (list(v) for v in torch.randn(3, *shape, generator=generator))
    h_eta = [v.requires_grad_() for v in h_eta]
    sum((a * b).sum() for a, b in zip(adapter.fuse(h, h_eta), g, strict=True)).backward()
    expected = torch.stack([(a * (b - c)).sum() for a, b, c in zip(g, h_eta, h, strict=True)])
    assert torch.allclose(adapter.mu.grad, expected, atol=1e-5)
    assert all(torch.equal(v.grad, torch.zeros_like(v)) for v in h_eta)


def test_gates_follow_the_papers_formula(base: FrozenBase) -> None:
    adapter = built(base, fusion="gate")
    with torch.no_grad():
        adapter.mu.copy_(torch.linspace(0, 1, len(adapter.mu)))
    ones, threes = [torch.ones(1)] * len(adapter.mu), [torch.full((1,), 3.0)] * len(adapter.mu)
    fused = torch.cat(adapter.fuse(ones, threes))
    assert torch.allclose(fused, 1 + 2 * adapter.mu)


def test_gates_have_their_own_rate_and_no_weight_decay(base: FrozenBase) -> None:
    encoder, gates = built(base, fusion="gate").parameter_groups(1e-4)
    assert encoder["lr"] == 1e-4
    assert gates["lr"] >= 1e-2
    assert gates["weight_decay"] == 0.0
    assert [tuple(p.shape) for p in gates["params"]] == [(5,)]  # conv_in, two levels and one way down, the middle
    assert len(built(base).parameter_groups(1e-4)) == 1


@pytest.mark.parametrize("channels", [1, 3, 4])
@every_fusion
def test_prepared_condition_is_all_that_steps_need(base: FrozenBase, kind: str, fusion: str, channels: int) -> None:
    adapter = stir(built(base, kind, fusion=fusion, condition_channels=channels))
    z_t, t, prompt, condition = batch(base, channels)
    with torch.no_grad():
        prepared = adapter.prepare(condition)
        assert all(len(part) == 2 for part in prepared)
        once = adapter.predict(base, z_t, t, prompt, prepared)
        assert torch.equal(once, adapter(base, z_t, t, prompt, condition))
        other = adapter(base, z_t, t, prompt, 1 - condition)
    assert (once - other).abs().max() > 1e-4


def test_a_stem_sees_colours_whitened_and_a_mask_beside_them_scaled() -> None:
    """The weights are those of the same draw of He's initialisation, times the matrix of the condition's channels."""

    def first_layer(channels: int, *, initialised: bool) -> torch.nn.Conv2d:
        stem = ControlNetConditioningEmbedding(16, channels, (8, 8))
        torch.manual_seed(5)
        if initialised:
            initialise_stem(stem)
        else:
            torch.nn.init.kaiming_normal_(stem.conv_in.weight, nonlinearity="relu")
        return stem.conv_in

    scale = torch.diag(torch.full((4,), 1 / LUMA_DEVIATION))
    scale[:3, :3] = torch.tensor(WHITEN)
    for channels, expected in ((1, scale[3:, 3:]), (3, scale[:3, :3]), (4, scale)):
        drawn, made = (first_layer(channels, initialised=done) for done in (False, True))
        assert torch.allclose(made.weight, torch.einsum("ochw,cd->odhw", drawn.weight, expected), atol=1e-5)
        with torch.no_grad():  # grey, and half a mask, is nothing
            assert made(torch.full((1, channels, 5, 5), 0.5))[0, :, 2, 2].abs().max() < 1e-4


def test_zero_conv_is_a_controlnet_tensor_for_tensor(base: FrozenBase) -> None:
    adapter = stir(built(base))
    z_t, t, prompt, condition = batch(base)
    with torch.no_grad():
        down, middle = adapter.encoder(z_t, t, prompt, controlnet_cond=condition, return_dict=False)
        expected = base.unet(
            z_t, t, prompt, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample
        found = adapter(base, z_t, t, prompt, condition)
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_full_adapter_runs_its_own_network_and_leaves_the_bases_alone(base: FrozenBase) -> None:
    adapter = built(base, "full")
    inputs = batch(base)
    with torch.no_grad():
        before = adapter(base, *inputs)
        other = with_unet(base, stir(unet(), 0.1))
        assert torch.equal(adapter(other, *inputs), before)  # whatever U-Net the base has now
        stir(adapter.unet, 0.01)
        assert not torch.equal(adapter(base, *inputs), before)
    mine = {value.data_ptr() for value in adapter.parameters()}
    assert not mine & {value.data_ptr() for value in base.parameters()}


def test_unknown_kinds_and_fusions_are_refused(base: FrozenBase) -> None:
    with pytest.raises(UsageError, match="no adapter kind 'pickle': one of control, lora, static, residual, full"):
        adapters.build("pickle", base)
    with pytest.raises(UsageError, match="--fusion sum: one of zero_conv, gate"):
        adapters.build("control", base, fusion="sum")


# ---- on disk


def record_of(base: FrozenBase, adapter: ControlAdapter) -> format.AdapterRecord:
    mark = base.fingerprint
    return format.AdapterRecord(
        task="superres",
        kind=adapter.kind,
        base=format.BaseRecord(name="tiny", family=mark.family, sketch=mark.sketch),
        prediction_type=base.schedule.prediction_type,
        steps=4,
        config=adapter.config,
    )


@pytest.fixture
def folder(base: FrozenBase, tmp_path: Path) -> Path:
    adapter = stir(built(base, condition_channels=1))
    format.write(tmp_path / "adapter", adapter, record_of(base, adapter), "# A card\n")
    return tmp_path / "adapter"


@every_fusion
def test_an_adapter_comes_back_from_its_files(any_base: FrozenBase, tmp_path: Path, kind: str, fusion: str) -> None:
    adapter = stir(built(any_base, kind, condition_channels=1, fusion=fusion))
    written = record_of(any_base, adapter)
    format.write(tmp_path / "a", adapter, written, "# A card\n")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(
        [format.WEIGHTS, format.RECORD, format.CARD]
    )
    record = format.read_record(tmp_path / "a" / format.RECORD)
    assert record == written
    loaded = format.load(tmp_path / "a" / format.WEIGHTS, record, any_base)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    state = loaded.state_dict()
    assert all(torch.equal(state[name], value.half().float()) for name, value in adapter.state_dict().items())
    inputs = batch(any_base, 1)
    with torch.no_grad():
        assert torch.allclose(loaded(any_base, *inputs), adapter(any_base, *inputs), atol=0.02)


@every_kind
def test_weights_take_two_bytes_on_disk_and_are_counted_where_they_are_resident(
    base: FrozenBase, tmp_path: Path, kind: str
) -> None:
    adapter = built(base, kind)
    count = sum(p.numel() for p in adapter.parameters())
    if kind == "full":
        assert count > sum(p.numel() for p in base.unet.parameters())
    format.write(tmp_path / "a", adapter, record_of(base, adapter), "")
    tensors = load_file(tmp_path / "a" / format.WEIGHTS)
    assert {value.dtype for value in tensors.values()} == {torch.float16}
    assert sum(value.numel() for value in tensors.values()) == count
    resident = Resident(budget=4 * count)
    loaded = resident.get("a", lambda: load(tmp_path / "a", base))
    assert resident.bytes == 4 * count
    assert resident.get("b", lambda: torch.nn.Linear(1, 1)) is not loaded
    assert resident.bytes < 4 * count  # one byte beyond the budget, and the older goes


def test_writing_twice_gives_the_same_bytes(base: FrozenBase, folder: Path, tmp_path: Path) -> None:
    adapter = stir(built(base, condition_channels=1))
    format.write(tmp_path / "again", adapter, record_of(base, adapter), "# A card\n")
    for name in (format.WEIGHTS, format.RECORD, format.CARD):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def load(folder: Path, base: FrozenBase, **options: bool) -> ControlAdapter:
    return format.load(folder / format.WEIGHTS, format.read_record(folder / format.RECORD), base, **options)


def test_another_base_is_refused_and_a_fine_tune_allowed_on_request(base: FrozenBase, folder: Path) -> None:
    family = with_unet(base, unet(block_out_channels=(8, 24)))
    tuned = with_unet(base, stir(unet(), 0.01))
    with pytest.raises(Mismatch, match=f"family {base.fingerprint.family}, .* family {family.fingerprint.family}"):
        load(folder, family, allow_base_mismatch=True)
    with pytest.raises(Mismatch, match="--allow-base-mismatch"):
        load(folder, tuned)
    assert isinstance(load(folder, tuned, allow_base_mismatch=True), ControlAdapter)
    assert isinstance(load(folder, with_unet(base, unet().half())), ControlAdapter)
    with pytest.raises(Mismatch):
        load(folder, with_unet(base, unet(), scheduler_config("sample", zero_snr=True)))


def edit(**changes: Any) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps(json.loads(data) | changes).encode()


def edit_base(**changes: Any) -> Callable[[bytes], bytes]:
    def edited(data: bytes) -> bytes:
        record = json.loads(data)
        record["base"] |= changes
        return json.dumps(record).encode()

    return edited


TAMPERED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "newer": (edit(format_version=3), "format version 3, this program reads up to 2: upgrade"),
    "cut": (lambda data: data[:60], "not an adapter record"),
    "empty": (lambda data: b"", "not an adapter record"),
    "binary": (lambda data: b"\xff\xfe\0", "not an adapter record"),
    "nested": (lambda data: b"[" * 200_000, "not an adapter record"),
    "endless number": (lambda data: b'{"steps": ' + b"9" * 5000 + b"}", "not an adapter record"),
    "a list": (lambda data: b"[]", "adapter.json"),
    "unknown field": (edit(run="rm"), "run: extra"),
    "missing field": (lambda data: b'{"task": "superres"}', "field required"),
    "steps": (edit(steps=0), "steps: "),
    "prediction": (edit(prediction_type="flow"), "prediction_type: "),
    "other prediction": (edit(prediction_type="epsilon"), "predicts epsilon, this base v_prediction"),
    "newer, as text": (edit(format_version="2"), "format_version: "),
    "no version at all": (edit(format_version=0), "format_version: "),
    "kind": (
        edit(kind="pickle"),
        "kind 'pickle', and this program knows control, lora, static, residual, full: upgrade codi-hub",
    ),
    "fusion": (edit(config={"fusion": "sum"}), "config: --fusion sum: one of zero_conv, gate"),
    "another's option": (edit(config={"base": 1}), "config: "),
    "text for steps": (edit(steps="4"), "steps: "),
    "field that clears the screen": (edit(**{"\x1b[2J\n": 1}), "\\x1b[2J"),
    "endless": (lambda data: data + b" " * (17 << 20), "over the limit"),
    "unknown option": (edit(config={"hidden": 1}), "hidden"),
    "given option": (edit(config={"pretrained": True}), "pretrained"),
    "channels": (edit(config={"condition_channels": 3}), "tensors differ"),
    "huge": (edit(config={"condition_channels": 10**15}), "a number from 1 to 64"),
    "negative": (edit(config={"condition_channels": -1}), "a number from 1 to 64"),
    "text for number": (edit(config={"condition_channels": "many"}), "'many': a number from 1 to 64"),
    "short sketch": (edit_base(sketch={"conv_in.weight": [1.0]}), "other weights"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_a_tampered_record_is_refused_in_one_line(base: FrozenBase, folder: Path, case: str) -> None:
    change, words = TAMPERED[case]
    path = folder / format.RECORD
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises((InvalidInput, Mismatch)) as caught:  # never a UsageError: nobody typed it
        load(folder, base)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def without_one(path: Path) -> None:
    tensors = load_file(path)
    tensors.pop("encoder.conv_in.weight")
    save_file(tensors, path)


def with_another(path: Path) -> None:
    save_file(load_file(path) | {"backdoor": torch.zeros(1)}, path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "not readable"),
        (lambda path: path.write_bytes(path.read_bytes()[:20]), "not readable"),
        (lambda path: path.write_bytes(b""), "not readable"),
        (lambda path: path.write_bytes(b"\xff" * 64), "not readable"),
        (Path.unlink, "not readable"),
        (without_one, "tensors differ"),
        (with_another, "tensors differ"),
    ],
    ids=["truncated", "header only", "empty", "garbage", "gone", "one missing", "one too many"],
)
def test_damaged_weights_are_refused_in_one_line(
    base: FrozenBase, folder: Path, damage: Callable[[Path], object], words: str
) -> None:
    damage(folder / format.WEIGHTS)
    with pytest.raises(InvalidInput, match=words) as caught:
        load(folder, base)
    assert "\n" not in str(caught.value)


def test_a_missing_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"adapter\.json: not an adapter record"):
        format.read_record(tmp_path / "adapter.json")


# ---- resident adapters


def test_resident_adapters_are_loaded_once_and_the_oldest_goes_first() -> None:
    loaded: list[str] = []

    def ask(cache: Resident, key: str) -> torch.nn.Module:
        def loader() -> torch.nn.Module:
            loaded.append(key)
            return torch.nn.Linear(10, 10, bias=False)  # 400 bytes

        return cache.get(key, loader)

    cache = Resident(budget=800)
    first = ask(cache, "a")
    assert ask(cache, "b") is not first
    assert ask(cache, "a") is first
    ask(cache, "c")  # "b" is the one not used for longest
    assert cache.bytes == 800
    assert ask(cache, "a") is first
    assert loaded == ["a", "b", "c"]
    ask(cache, "b")
    assert loaded == ["a", "b", "c", "b"]
    small = Resident(budget=1)
    assert ask(small, "d") is ask(small, "d")  # the one in use stays
