"""The options of commands: flags from the configuration's fields, layers, and errors that name what was typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

from codi_hub import EvalReport
from codi_hub.cli import application
from codi_hub.cli.common import parse_set
from codi_hub.errors import UsageError

EVERYDAY = """
--data --columns --count --size --base --kind --from --method --train-steps --time-budget --batch --accumulate --lr
--precision --gradient-checkpointing
--device --seed --resume --run-dir --workers --sample-every --checkpoint-every --guidance --start --set --preset
--config -O --cache-dir --dry-run --json -q --quiet
"""

REMOVED = {
    "--pairs x": "use --cache-dir",
    "--rank 4": "use -O adapter.rank=VALUE",
    "--fusion=gate": "use -O adapter.fusion=gate",
    "--no-gain": "use -O adapter.gain=false",
    "--init random": "use -O adapter.init=VALUE",
    "--start-noise 0.5": "use -O adapter.start_noise=VALUE",
    "--blocks 2": "use -O adapter.blocks=VALUE",
    "--levels 2": "use -O adapter.levels=VALUE",
    "--read": "use -O adapter.read=true",
    "--allow-base-mismatch": "use -O adapter.allow_base_mismatch=true",
    "--grid 4": "use -O loss.grid=VALUE",
    "--dt 2": "use -O loss.dt=VALUE",
    "--ode noise": "use -O loss.ode=VALUE",
    "--no-consistency": "use -O loss.consistency=0",
    "--consistency-weight 2": "use -O loss.consistency=VALUE",
    "--no-consistency-cap": "use -O loss.consistency_cap=false",
    "--rollout 1": "use -O loss.rollout=VALUE",
    "--mixed-t": "use -O loss.shared_t=false",
    "--shared-t": "use -O loss.shared_t=true",
    "--guidance-cap 5": "use -O loss.guidance_cap=VALUE",
    "--lpips w": "use -O loss.lpips=VALUE",
    "--ema 0.9": "use -O training.ema=VALUE",
    "--scale 2": "use --set scale=VALUE",
    "--mirror": "removed with training on mirror images; adapters trained with it still run",
    "--attend all": "removed with cross-attention at every level of the encoder; adapters trained with it still run",
    "--top-down": "removed with the top-down path beside the encoder; adapters trained with it still run",
    "--optimizer muon": "removed with the choice of the optimiser, which is AdamW now; adapters trained with it still "
    "run",
}


def test_distill_has_the_everyday_flags_and_no_others() -> None:
    command: Any = typer.main.get_command(application.app("distill"))
    flags = {flag for parameter in command.commands["distill"].params for flag in parameter.opts if flag[0] == "-"}
    assert flags == set(EVERYDAY.split())


@pytest.mark.parametrize("typed", REMOVED, ids=str)
def test_a_removed_flag_names_its_successor(codi: Callable[..., Any], typed: str) -> None:
    flag = typed.split()[0].partition("=")[0]
    assert codi("distill", "depth", *typed.split()) == (2, "", f"Error: {flag}: {REMOVED[typed]}\n")


def test_the_help_of_distill_fits_a_tall_screen(codi: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    answer = codi("distill", "--help")
    assert len(answer.out.splitlines()) < 82
    assert "config.yaml" in answer.out


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--lr", "-1"], "--lr -1.0: at least 0"),
        (["--lr", "nan"], "--lr nan: a finite number"),
        (["--device", "tpu"], "--device tpu: one of auto, cpu, cuda, cuda:N, mps"),
        (["--time-budget", "soon"], "--time-budget soon: not a duration; write it as 90s, 10m or 1h30m"),
        (["--start", "0"], "--start 0.0: at least 0.02"),
        (["-O", "training.lr=-1"], "training.lr -1: at least 0"),
        (["-O", "lr=1"], "lr: no such field; did you mean training.lr?"),
        (["-O", "training.lrr=1"], "training.lrr: no such field; did you mean training.lr?"),
        (["-O", "training.lr"], "'training.lr': not an override; write path.to.field=value, as training.ema=0.999"),
        (["-O", "training.ema=[1"], "'training.ema=[1': line 1: not readable as YAML: "),
        (["-O", "training.batch=a"], "training.batch a: a whole number"),
        (
            ["--preset", "fast"],
            "no preset 'fast': one of canny, deblur, depth, edit, inpaint, paper, quality, quick, superres",
        ),
        (["-O", "loss.grd=4"], "loss.grd: not a field of method pe-codi; did you mean loss.grid?"),
        (["-O", "loss.grid=1"], "loss.grid 1: at least 2"),
        (["-O", "loss.dt=8"], "loss.dt 8: less than loss.grid (8)"),
        (["-O", "adapter.rank=4"], "adapter.rank: not a field of kind static; one of "),
        (["--kind", "lora", "-O", "adapter.rank=0"], "adapter.rank 0: at least 1"),
        (
            ["--kind", "lora", "-O", "adapter.init=random"],
            "adapter.init random: kind lora shares the base's weights; use kind control",
        ),
        (["--method", "gdi"], "--method gdi: one of pe-codi, codi, conditional, cm, gd"),
        (
            ["--method", "cm"],
            "--method cm: it needs a teacher; train one with method conditional and name it as --from",
        ),
        (
            ["--method", "conditional", "-O", "loss.ode=none"],
            "loss.ode: not a field of method conditional; there is none",
        ),
        (
            ["--method", "conditional", "--guidance", "pixel"],
            "--guidance: not a field of method conditional; there is none",
        ),
        (["--guidance", "nearest"], "--guidance nearest: one of latent, relative, roundtrip, pixel, lpips"),
        (
            ["--method", "codi", "--kind", "control"],
            "--method codi: it trains everything, and kind control keeps the base frozen; use method pe-codi",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_value_is_named_as_it_was_typed(codi: Callable[..., Any], args: list[str], line: str) -> None:
    answer = codi("distill", "superres", *args)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith(f"Error: {line}")
    assert answer.err.count("\n") == 1


def test_a_wrong_configuration_file_is_named(codi: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("training:\n  lr: -1\n")
    assert codi("distill", "depth", "--config", file) == (2, "", f"Error: {file}: training.lr -1: at least 0\n")
    file.write_text("a: [")
    assert codi("distill", "depth", "--config", file).err.startswith(f"Error: {file}: line 1: not readable as YAML: ")
    file.unlink()
    assert codi("distill", "depth", "--config", file) == (1, "", f"Error: {file}: No such file or directory\n")


def test_set_reads_json_scalars_and_text() -> None:
    pairs = ["scale=2", "invert=true", "sigma=0.5", "estimate=org/model=v2", "note=", "none=null", "list=[1]"]
    assert parse_set(pairs, mask=None, tile=8) == {
        "scale": 2,
        "invert": True,
        "sigma": 0.5,
        "estimate": "org/model=v2",
        "note": "",
        "none": None,
        "list": "[1]",
        "tile": 8,
    }


@pytest.mark.parametrize("pair", ["scale", "=2", ""])
def test_set_refuses_what_is_not_a_pair(pair: str) -> None:
    with pytest.raises(UsageError, match="--set takes KEY=VALUE"):
        parse_set([pair])


def test_reports_become_plain_json() -> None:
    rows = [{"name": "4 steps", "psnr": 24.5}]
    report = EvalReport(
        task="depth",
        adapter="depth:1",
        base="nano",
        images=4,
        columns=["psnr"],
        rows=rows,
        seconds=1.5,
        out=Path("a/b"),
    )
    document = json.loads(json.dumps(report.to_json()))
    assert document["out"] == str(Path("a/b"))
    assert document["rows"] == rows
