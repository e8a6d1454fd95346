"""The configuration of a distillation: files, presets, overrides, and run folders of the first edition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codi_hub import DistillConfig
from codi_hub.config import first_edition, yaml_text
from codi_hub.config.layers import merge, nested, parse_override, preset_names, read_config, read_preset
from codi_hub.config.model import declared
from codi_hub.config.write import to_yaml
from codi_hub.errors import CodiError, InvalidInput, UsageError

BUNDLED = ("superres", "inpaint", "depth", "edit", "canny", "deblur")


def test_every_field_has_a_docstring() -> None:
    assert [one.path for one in declared(DistillConfig) if not one.help] == []


@pytest.mark.parametrize(
    ("text", "layer"),
    [
        ("training.ema=0.9", {"training": {"ema": 0.9}}),
        ("training.lr=1e-4", {"training": {"lr": 1e-4}}),
        ("training.time_budget=10m", {"training": {"time_budget": "10m"}}),
        ("loss.guidance=off", {"loss": {"guidance": "off"}}),
        ("loss.guidance_cap=null", {"loss": {"guidance_cap": None}}),
        ("adapter.gain=false", {"adapter": {"gain": False}}),
        ("base=tiny", {"base": "tiny"}),
        ("task.scale=2", {"task": {"scale": 2}}),
        ("data.source=edits+removals", {"data": {"source": "edits+removals"}}),
    ],
)
def test_an_override_has_the_type_of_its_value(text: str, layer: dict[str, Any]) -> None:
    assert parse_override(text) == layer


def test_a_later_layer_replaces_values_and_keeps_their_neighbours() -> None:
    layers = [{"training": {"lr": 1, "batch": 2}, "task": {"a": 1}}, {"training": {"lr": 3}, "task": {"b": 2}}]
    assert merge(layers) == {"training": {"lr": 3, "batch": 2}, "task": {"a": 1, "b": 2}}
    assert layers[0] == {"training": {"lr": 1, "batch": 2}, "task": {"a": 1}}
    assert nested({"a.b": 1, "a.c": 2, "d": 3}) == {"a": {"b": 1, "c": 2}, "d": 3}


def test_presets_are_valid_and_say_when_they_are_regression() -> None:
    assert set(preset_names()) == {*BUNDLED, "superres-pe-codi", "paper", "quick", "quality"}
    for name in preset_names():
        config = DistillConfig(**read_preset(name))
        text = (Path(first_edition.__file__).parent / "presets" / f"{name}.yaml").read_text()
        assert ("This is regression" in " ".join(text.replace("#", "").split())) == (
            config.loss.extras.get("consistency") == 0
        )


@pytest.mark.slow
@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.text() | st.integers() | st.booleans(), max_size=5
    ),
    st.floats(0, 1),
)
def test_a_configuration_is_read_back_from_its_yaml(options: dict[str, Any], ema: float) -> None:
    config = DistillConfig(training={"ema": ema, "time_budget": "1h"}, adapter={"rank": 2}, task=options)
    assert DistillConfig(**yaml_text.load(to_yaml(config))) == config


def test_a_file_says_what_each_field_means_and_not_where_the_run_is(tmp_path: Path) -> None:
    config = DistillConfig(training={"run_dir": tmp_path, "resume": True, "lr": 1e-5}, loss={"guidance": "off"})
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config, heading="codi distill depth"))
    assert "# Learning rate (default: by the base)\n  lr: 1.0e-05\n" in file.read_text()
    assert DistillConfig(**read_config(file)) == config.replace(
        training=config.training.replace(run_dir=None, resume=False)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: &x 1\nb: *x", "line 2: not readable as YAML: an alias"),
        ("base: a\nbase: b", "line 1: not readable as YAML: 'base' twice"),
        ("[1]", "not a configuration: a mapping of sections such as training"),
        ("1: 2", "not a configuration: a mapping of sections such as training"),
        ("base: !!python/object:os.x y", "line 1: not readable as YAML: could not determine a constructor"),
        ("base: " + "[" * 5000, "not readable as YAML: "),
        ("training: {lr: " + "9" * 5000 + "}", "not readable as YAML: a number of 5000 digits"),
        ("#" * (1 << 18) + "##", "262146 bytes, over the limit of 262144 for a configuration"),
        ("\x00", "not readable as YAML: "),
        ("training: 3", "training 3: a mapping of fields"),
        ("training: {lr: .inf}", "training.lr inf: a finite number"),
        ("adapter: {kind: [a]}", "adapter.kind ['a']: text"),
        ("data: {source: {a: b}}", "data.source {'a': 'b'}: text"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_in_one_line(tmp_path: Path, text: str, line: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(CodiError) as caught:
        read_config(file)
    assert str(caught.value).startswith(f"{file}: {line}")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInput, match="not UTF-8 text"):
        read_config(tmp_path / "c.yaml")


def test_flat_names_of_tasks_and_flags_have_one_meaning() -> None:
    flat = {"count": 2500, "lr": 6e-4, "kind": "side", "guidance": "relative", "from": "x:1", "ema": 0.9, "grid": 4}
    config = DistillConfig(**first_edition.layer_of(flat))
    assert (config.data.count, config.training.lr, config.adapter.kind) == (2500, 6e-4, "residual")
    assert (config.adapter.parent, config.training.ema, config.loss.extras) == ("x:1", 0.9, {"grid": 4})
    with pytest.raises(UsageError, match="lrr: no option of a distillation"):
        first_edition.layer_of({"lrr": 1})


def run_json(folder: Path, **changes: Any) -> None:
    """Write a `run.json` as the first edition did."""
    record = {"task": "x2", "like": "superres", "task_options": {"scale": 2}, "base": "tiny", "data": None, "count": 12}
    record |= {"size": 16, "mirror": False, "kind": "lora", "rank": 1, "blocks": None, "levels": None, "read": False}
    record |= {"fusion": "zero_conv", "gain": True, "attend": "base", "top_down": False, "init": "pretrained"}
    record |= {"method": "pe-codi", "grid": 8, "dt": 1, "ode": "own", "guidance": "latent", "guidance_cap": 5.0}
    record |= {"lpips": None, "consistency": True, "consistency_weight": 1.0, "consistency_cap": True}
    record |= {"shared_t": True, "rollout": 0.0, "start": 1.0, "start_noise": None, "ema": 0.99, "lr": 6e-4}
    record |= {"optimizer": "adamw", "seed": 0, "options": {}, "pairs_per_step": 2}
    (folder / "run.json").write_text(json.dumps(record | changes))


def test_a_run_of_the_first_edition_becomes_a_layer(tmp_path: Path) -> None:
    run_json(tmp_path)
    layer = first_edition.read_run(tmp_path)
    config = DistillConfig(**layer)
    assert (config.adapter.kind, config.adapter.extras) == ("lora", {"rank": 1})
    assert config.loss.extras == {"rollout": 0.0}
    assert (config.data.count, config.data.size, config.base, config.task) == (12, 16, "tiny", {"scale": 2})
    assert (config.run.task, config.run.like, config.run.pairs_per_step) == ("x2", "superres", 2)
    run_json(tmp_path, consistency=False, kind="side", blocks=2, method="gd", **{"from": "x2:1"})
    config = DistillConfig(**first_edition.read_run(tmp_path))
    assert (config.adapter.kind, config.adapter.extras["blocks"]) == ("residual", 2)
    assert config.loss.extras == {"consistency": 0.0}
    assert config.run.teacher == "x2:1"


@pytest.mark.parametrize("change", [{"mirror": True}, {"attend": "all"}, {"top_down": True}, {"optimizer": "muon"}])
def test_a_run_with_a_removed_option_is_not_resumed(tmp_path: Path, change: dict[str, Any]) -> None:
    run_json(tmp_path, **change)
    with pytest.raises(UsageError, match=rf"\({next(iter(change))}\), which was removed: start a new run"):
        first_edition.read_run(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", "\xff"])
def test_a_damaged_run_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidInput, match="not the record of a run"):
        first_edition.read_run(tmp_path)


def test_a_run_json_without_its_task_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"like": "depth"}')
    with pytest.raises(InvalidInput, match="not the record of a run: no task, pairs_per_step"):
        first_edition.read_run(tmp_path)
