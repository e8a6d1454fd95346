"""The progress display, where there is no terminal: lines on stderr, nothing on stdout."""

from __future__ import annotations

import pytest

from codi_hub.cli.output import Output, cell, details, size, table
from codi_hub.cli.progress import Display
from codi_hub.events import EvaluationStep, ItemDone, Message, TrainingStep

FAILED = ItemDone({"input": "a.png", "status": "failed", "error": "truncated"}, done=1, total=3)


def _step(step, total=20, eta=61.0):
    return TrainingStep(step, total, {"x": 0.12345}, images_per_s=3.21, eta=eta)


def test_steps_are_printed_at_intervals_and_at_the_end(capsys):
    with Display(Output()) as display:
        for step in range(1, 21):
            display(_step(step))
    out, err = capsys.readouterr()
    assert (out, err.splitlines()) == (
        "",
        ["step 1/20  x 0.1235  3.2 images/s  1:01 left", "step 20/20  x 0.1235  3.2 images/s  1:01 left"],
    )


def test_a_time_budget_has_no_last_step(capsys):
    with Display(Output()) as display:
        display(_step(3, total=None, eta=3725.0))
    assert capsys.readouterr().err == "step 3  x 0.1235  3.2 images/s  1:02:05 left\n"


def test_an_evaluation_counts_its_images(capsys):
    with Display(Output()) as display:
        for done in range(1, 9):
            display(EvaluationStep(done, 8))
    assert capsys.readouterr().err.splitlines() == ["measured 1/8", "measured 8/8"]


@pytest.mark.parametrize(("quiet", "lines"), [(True, 1), (False, 3)])
def test_failures_are_printed_even_when_quiet(quiet, lines, capsys):
    with Display(Output(quiet=quiet)) as display:
        display(Message("training data: leaves"))
        display(FAILED)
    out, err = capsys.readouterr()
    assert out == ""
    assert "failed: a.png: truncated\n" in err
    assert err.count("\n") == lines


def test_on_a_terminal_a_bar_is_drawn_and_cleared_up(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with Display(Output()) as display:
        display(_step(1))
        display(FAILED)
        display(_step(20))
    out, err = capsys.readouterr()
    assert out == ""
    assert "20/20" in err
    assert "failed: a.png: truncated" in err


def test_tables_align_text_left_and_numbers_right():
    text = table(("name", "n", "x"), [("a", 5, 0.123456), ("long", 100, None)])
    assert text.splitlines() == ["NAME    N       X", "a       5  0.1235", "long  100       -"]


@pytest.mark.parametrize(("count", "text"), [(812, "812 B"), (9_200_000, "9.2 MB"), (1_444_000_000, "1.44 GB")])
def test_sizes(count, text):
    assert size(count) == text


def test_details_indent_nested_mappings():
    assert details({"metrics": {"by_steps": {"4": {"psnr": 26.84479}}}}).splitlines() == [
        "metrics",
        "  by_steps:",
        "    4:",
        "      psnr: 26.84",
    ]
    assert details({"name": "x", "options": {"scale": 2}, "tags": ["a", "b"], "none": {}}).splitlines() == [
        "name     x",
        "options",
        "  scale: 2",
        "tags     a, b",
        "none     -",
    ]
    assert cell(True) == "yes"
