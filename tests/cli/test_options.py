"""The options dataclasses: limits, durations, and what JSON makes of the reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codi_hub.cli.common import parse_set
from codi_hub.config.options import DistillOptions, EvalOptions, RunOptions, parse_duration, parse_size
from codi_hub.errors import UsageError
from codi_hub.reports import EvalReport


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("1h30m", 5400), ("1h5s", 3605), ("45", 45), (" 0.5H ", 1800), (7, 7)],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "0s", "-3m", "10 m", "1m1h", "ten", "1d", "nan"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(UsageError) as caught:
        parse_duration(text)
    assert str(caught.value) == f"not a duration: {text!r}; write it as 90s, 10m or 1h30m"


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59))
def test_a_duration_is_the_sum_of_its_parts(hours, minutes, seconds):
    total = hours * 3600 + minutes * 60 + seconds
    if total:
        assert parse_duration(f"{hours}h{minutes}m{seconds}s") == total


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("2GB", 2 * 10**9),
        ("500 mb", 5 * 10**8),
        ("1.5g", 1.5 * 10**9),
        ("2GiB", 2**31),
        ("4096", 4096),
        ("3B", 3),
        (" 1kB ", 1000),
        ("0", 0),
        (7, 7),
    ],
)
def test_sizes(text, count):
    assert parse_size(text) == count
    assert RunOptions(adapter_memory=text).adapter_memory == count


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "2iB", "2 G B", "1e9", "lots", "nan", "9" * 400, "2PB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError) as caught:
        parse_size(text)
    assert str(caught.value) == f"not a size: {text!r}; write it as 500MB or 2GB"


def test_options_are_checked_from_python_as_from_the_command_line():
    assert DistillOptions(time_budget="10m").time_budget == 600
    assert EvalOptions(steps="1,4,1").steps == (1, 4)
    with pytest.raises(UsageError, match="--fusion must be one of zero_conv, gate, not 'add'"):
        DistillOptions(fusion="add")
    with pytest.raises(UsageError, match=r"--ema must be at most 1.0, not 1.5"):
        DistillOptions(ema=1.5)
    with pytest.raises(UsageError, match="--seed must be at least 0, not -1"):
        RunOptions(seed=-1)


def test_the_kind_is_the_methods_unless_a_version_is_gone_on_from():
    assert DistillOptions().kind == "static"
    assert DistillOptions(method="conditional").kind == "control"
    assert DistillOptions(method="codi").kind == "full"
    assert DistillOptions(method="conditional", kind="full").kind == "full"
    assert DistillOptions(method="gd", parent="depth:1").kind == DistillOptions(parent="depth:1").kind == ""
    assert DistillOptions(kind="lora", rank=4).rank == 4
    with pytest.raises(UsageError, match="--rank has a meaning with --kind lora alone"):
        DistillOptions(kind="static", rank=4)
    with pytest.raises(UsageError, match="--no-gain has a meaning with --kind static alone"):
        DistillOptions(kind="lora", gain=False)
    with pytest.raises(UsageError, match="--init random: kind lora is made of the base's own weights"):
        DistillOptions(kind="lora", init="random")
    assert DistillOptions(method="cm", parent="depth:1", grid=50, dt=2, shared_t=False, ema=0.9).grid == 50


def test_names_in_the_options_are_those_of_the_code():
    from codi_hub import adapters
    from codi_hub.config import options
    from codi_hub.diffusion import samplers as sampler
    from codi_hub.inference import engine
    from codi_hub.training import step as methods

    assert tuple(sampler.SAMPLERS) == options.SAMPLERS
    assert set(options.EXPORT_DTYPES) == set(engine.DTYPES)
    assert tuple(methods.METHODS) == options.METHODS
    assert {option for of in options.READS.values() for option in of} <= set(DistillOptions.__dataclass_fields__)
    assert "full" in adapters.KINDS


def test_set_reads_json_scalars_and_text():
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
def test_set_refuses_what_is_no_pair(pair):
    with pytest.raises(UsageError, match="--set takes KEY=VALUE"):
        parse_set([pair])


def test_reports_become_plain_json():
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
