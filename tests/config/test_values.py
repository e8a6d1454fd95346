"""Durations, sizes and the flat options of runs, evaluations and exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codi_hub import EvalOptions, ExportOptions, RunOptions
from codi_hub.config.distill import TrainingConfig
from codi_hub.config.values import ExportPrecision, Precision
from codi_hub.errors import UsageError
from codi_hub.validation import shown


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("1h30m", 5400), ("1h5s", 3605), ("45", 45), (" 0.5H ", 1800), (7, 7)],
)
def test_durations(text: Any, seconds: float) -> None:
    assert TrainingConfig(time_budget=text).time_budget == seconds


@pytest.mark.parametrize("text", ["", "m", "0s", "-3m", "10 m", "1m1h", "ten", "1d", "nan"])
def test_what_is_not_a_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        TrainingConfig(time_budget=text)
    assert str(caught.value) == f"training.time_budget {shown(text)}: not a duration; write it as 90s, 10m or 1h30m"


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59))
def test_a_duration_is_the_sum_of_its_parts(hours: int, minutes: int, seconds: int) -> None:
    total = hours * 3600 + minutes * 60 + seconds
    if total:
        assert TrainingConfig(time_budget=f"{hours}h{minutes}m{seconds}s").time_budget == total


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
def test_sizes(text: Any, count: float) -> None:
    assert RunOptions(adapter_memory=text).adapter_memory == count


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "2iB", "2 G B", "1e9", "lots", "nan", "9" * 400, "2PB"])
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        RunOptions(adapter_memory=text)
    assert str(caught.value) == f"adapter_memory {shown(text)}: not a size; write it as 500MB or 2GB"


@pytest.mark.parametrize(
    ("model", "values", "line"),
    [
        (RunOptions, {"steps": 0}, "steps 0: at least 1"),
        (RunOptions, {"steps": 1001}, "steps 1001: at most 1000"),
        (RunOptions, {"seed": -1}, "seed -1: at least 0"),
        (RunOptions, {"seed": None}, "seed none: a whole number"),
        (RunOptions, {"device": "tpu"}, "device tpu: one of auto, cpu, cuda, cuda:N, mps"),
        (RunOptions, {"temperature": float("nan")}, "temperature nan: a finite number"),
        (RunOptions, {"step": 4}, "step: no such field; did you mean steps?"),
        (RunOptions, {"adapter_memory": "lots"}, "adapter_memory lots: not a size; write it as 500MB or 2GB"),
        (EvalOptions, {"steps": "1,x"}, "steps 1,x: numbers from 1 up, as 1,2,4,8"),
        (EvalOptions, {"steps": (0,)}, "steps (0,): numbers from 1 up, as 1,2,4,8"),
        (ExportOptions, {}, "out: missing"),
        (ExportOptions, {"out": "x", "format": "onnx"}, "format onnx: one of diffusers, ldm, comfyui, peft, codi"),
    ],
)
def test_errors_name_the_field_and_the_value(model: Any, values: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        model(**values)
    assert str(caught.value) == line


def test_options_are_converted_frozen_and_replaced() -> None:
    assert EvalOptions(steps="1,4,1", against="base, depth:2").steps == (1, 4)
    assert EvalOptions(against="base, depth:2").against == ("base", "depth:2")
    options = RunOptions(steps=4, out="x")
    assert options.out == Path("x")
    assert options.replace(steps=2) == RunOptions(steps=2, out="x")
    with pytest.raises(UsageError, match="steps 0: at least 1"):
        options.replace(steps=0)


def test_precisions_are_those_of_the_engine() -> None:
    from codi_hub.inference import devices

    assert set(get_args(ExportPrecision)) == set(get_args(Precision)) - {"auto"} == set(devices.DTYPES)
