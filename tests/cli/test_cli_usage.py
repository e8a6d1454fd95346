"""What every command has in common: help, exit codes, one-line errors, speed of start."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys

import pytest
import typer.main

import codi_hub
from codi_hub.cli import application


def _commands(command=None, path=()):
    command = command or typer.main.get_command(application.app())
    for name, child in getattr(command, "commands", {}).items():
        yield (*path, name), child
        yield from _commands(child, (*path, name))


COMMANDS = dict(_commands())


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_help_for_itself_and_its_parameters(path, codi):
    answer = codi(*path, "--help")
    assert answer.code == 0
    assert f"codi {' '.join(path)}" in answer.out
    assert COMMANDS[path].help
    assert [p.name for p in COMMANDS[path].params if not getattr(p, "help", None)] == []


@pytest.mark.parametrize("path", [p for p, c in COMMANDS.items() if not getattr(c, "commands", None)], ids=" ".join)
def test_every_command_that_prints_has_json_and_quiet(path):
    flags = {flag for parameter in COMMANDS[path].params for flag in parameter.opts}
    assert {"--json", "--quiet", "-q"} <= flags


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["nosuch"], "No such command 'nosuch'; see `codi --help`"),
        (["run"], "say TASK and INPUT, or --jobs FILE; see `codi run --help`"),
        (["run", "superres"], "say TASK and INPUT, or --jobs FILE; see `codi run --help`"),
        (["run", "superres", "in", "--steps", "0"], "--steps 0: at least 1"),
        (["run", "superres", "in", "--set", "scale"], "--set takes KEY=VALUE, not 'scale'"),
        (["run", "superres", "in", "--set", "scale=2", "--scale", "4"], "option scale is given twice, as 2 and 4"),
        (["run", "superres", "in", "--device", "tpu"], "--device tpu: one of auto, cpu, cuda, cuda:N, mps"),
        (["run", "superres", "in", "--ext", "gif"], "--ext gif: one of auto, png, jpg, tif"),
        (["distill", "depth", "--lr", "nan"], "--lr nan: a finite number"),
        (["distill", "depth", "--size", "1000000"], "--size 1000000: at most 4096"),
        (["distill", "depth", "--count", "1" * 20], f"--count {'1' * 20}: at most 100000000"),
        (["run", "superres", ""], "the argument after superres is empty: give a value or leave it out"),
        (["run", "superres", "in", "-o", ""], "the argument after -o is empty: give a value or leave it out"),
        (["distill", "depth", "--preset", ""], "the argument after --preset is empty: give a value or leave it out"),
        (
            ["distill", "depth", "--guidance", "l1"],
            "--guidance l1: one of latent, relative, roundtrip, pixel, lpips, off",
        ),
        (
            ["distill", "depth", "--guidance", "lpips"],
            "--guidance lpips needs a network: name its weights with loss.lpips",
        ),
        (["run", "superres", "in", "--sampler", "euler"], "--sampler euler: one of ddim, renoise, dpmpp"),
        (["eval", "superres", "--steps", "1,x"], "--steps 1,x: numbers from 1 up, as 1,2,4,8"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_line_on_stderr_and_exit_code_2(args, line, codi):
    assert codi(*args) == (2, "", f"Error: {line}\n")


def test_without_a_command_the_help_is_shown_and_the_exit_code_is_2(codi):
    answer = codi()
    assert answer.code == 2
    assert "Usage: codi" in answer.out + answer.err


def test_version(codi):
    assert codi("--version") == (0, f"codi-hub {codi_hub.__version__}\n", "")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (codi_hub.NotFound("no task 'x'"), 1, "Error: no task 'x'"),
        (codi_hub.UsageError("two\nlines"), 2, "Error: two lines"),
        (OSError(28, "No space left on device", "/full/file"), 1, "Error: No space left on device: /full/file"),
        (
            TypeError("odd"),
            1,
            "Error: unexpected TypeError: odd (run again with CODI_DEBUG=1 for the traceback)",
        ),
        (KeyboardInterrupt(), 130, "Interrupted."),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_error_ends_as_one_line_with_its_exit_code(error, code, line, codi, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(codi_hub.Catalog, "task_list", fail)
    assert codi("task", "list") == (code, "", line + "\n")


def test_the_traceback_is_shown_on_request(codi, monkeypatch):
    monkeypatch.setenv("CODI_DEBUG", "1")
    answer = codi("run", "superres", "in", "--steps", "0")
    assert "Traceback (most recent call last)" in answer.err
    assert answer.err.endswith("Error: --steps 0: at least 1\n")


LOOKING_UP = """
import sys
from codi_hub import cli
codes = []
for command in (
    "list", "task add depth", "task add fog --like depth", "task list", "task show fog", "show depth", "base list",
    "base show nano", "base use nano", "verify", "tag depth prod", "tag depth prod --remove", "cp depth fog", "rm fog",
    "task rm fog", "gc", "runs list",
):
    args = command.split()
    try:
        cli.main(args)
    except SystemExit as stopped:
        codes.append(stopped.code)
heavy = {"torch", "diffusers", "transformers", "peft", "accelerate", "datasets", "rich", "alembic", "sqlalchemy.orm"}
print(codes, sorted(heavy & set(sys.modules)))
"""


@pytest.mark.slow
def test_looking_things_up_imports_neither_torch_nor_alembic(codi):
    assert codi("list").code == 0  # the registry is there
    done = subprocess.run([sys.executable, "-c", LOOKING_UP], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"{[0] * 17} []", done.stderr


def test_one_command_imports_only_its_own_module(codi):
    assert codi("list").code == 0
    code = "import sys\nfrom codi_hub.cli import application, main\ntry:\n    main(['list'])\nfinally:\n"
    code += "    print([name for name in application.COMMANDS if f'codi_hub.cli.{name}' in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "['adapters']", done.stderr


@pytest.mark.parametrize("module", application.COMMANDS)
def test_every_module_has_the_commands_it_is_imported_for(module):
    one = typer.main.get_command(application.app(application.COMMANDS[module][0]))
    assert tuple(one.commands) == application.COMMANDS[module]


def test_looking_things_up_leaves_the_collector_as_it_was(codi):
    assert codi("list").code == codi("show", "depth").code == 0
    assert codi("list", "nosuch").code == 1
    assert gc.isenabled()


@pytest.mark.slow
def test_the_module_is_the_command_too():
    done = subprocess.run(
        [sys.executable, "-m", "codi_hub.cli", "task", "list", "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {"superres", "depth"} <= {entry["name"] for entry in json.loads(done.stdout)}


# ---- streams and signals


def started(*args, code="", **given):
    """Run the command in a process of its own, after `code`, as the console script does."""
    script = f"{code}\nimport sys\nsys.argv[1:] = {list(args)!r}\nfrom codi_hub import cli\ncli.main()"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, **given)


def test_names_print_in_any_encoding_and_json_stays_json(codi, tmp_path):
    (tmp_path / "日本é.png").write_bytes(b"no image")
    for encoding in ("cp1252", "ascii"):
        env = os.environ | {"PYTHONIOENCODING": encoding}
        dry = ("run", "superres", str(tmp_path), "--dry-run", "-o", str(tmp_path / "out"))
        text = started(*dry, env=env)
        assert text.returncode == 0, text.stderr
        assert b"\\u65e5" in text.stdout
        document = json.loads(started(*dry, "--json", env=env).stdout)
        assert document["items"][0]["input"].endswith("日本é.png")


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_closed_stream_ends_no_command(codi, number):
    assert codi("list").code == 0
    done = started("list", code=f"import os; os.close({number})")
    assert done.returncode == 0, done.stderr
    assert (b"superres:1" in done.stdout) == (number != 1)
    assert b"Traceback" not in done.stderr


def test_a_stdout_that_is_full_is_one_line(codi):
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "codi_hub.cli", "list"], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert re.fullmatch(b"Error: .*No space left on device\n", done.stderr)


def test_a_deleted_working_directory_is_replaced_and_named(codi, tmp_path):
    gone = "import os, tempfile; where = tempfile.mkdtemp(); os.chdir(where); os.rmdir(where)"
    done = started("list", code=gone, env=os.environ | {"TMPDIR": str(tmp_path)})
    assert done.returncode == 0
    assert done.stderr.startswith(b"The working directory was deleted: relative paths begin at " + bytes(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("where", ["import", "command"])
def test_a_signal_ends_a_command_with_one_line_and_130(number, where, tmp_path):
    kill = f"import os, signal; os.kill(os.getpid(), {int(number)})"
    if where == "import":  # of a library, which turns every exception into its own
        (tmp_path / "typer.py").write_text(f"try:\n    {kill}\nexcept BaseException as error:\n    raise ImportError")
        done = started("list", env=os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"})
    else:
        patch = "import codi_hub\ndef fail(*_, **__):\n    " + kill + "\ncodi_hub.Catalog.list = fail"
        done = started("list", "--json", code=patch)
        assert json.loads(done.stdout)["error"]["exit_code"] == 130
    assert (done.returncode, done.stderr) == (130, b"Interrupted.\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_a_finaliser_is_not_lost(number):
    code = f"""
import os, time, codi_hub
class Final:
    def __del__(self): os.kill(os.getpid(), {int(number)})
def wait(*_, **__):
    Final()
    time.sleep(20)
    return []
codi_hub.Catalog.list = wait
"""
    done = started("list", code=code)
    assert (done.returncode, done.stderr) == (130, b"Interrupted.\n")


def test_a_signal_after_the_end_of_a_command_changes_nothing():
    code = """
import os, signal
from codi_hub import interrupts
def finish(code, usual=interrupts.finish):
    interrupts.finish = usual
    os.kill(os.getpid(), signal.SIGTERM)
    usual(code)
interrupts.finish = finish
"""
    done = started("list", "-q", code=code)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"superres" in done.stdout


def test_a_signal_that_was_ignored_stays_ignored():
    code = "import signal, codi_hub; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    code += "codi_hub.Catalog.list = lambda *_: signal.raise_signal(signal.SIGHUP) or []"
    assert started("list", code=code).returncode == 0


@pytest.mark.parametrize("args", [("show", "nosuch"), ("run", "nosuch", "in"), ("list", "--nope"), ("lst",)])
def test_a_refusal_is_json_too_where_json_was_asked_for(args, codi):
    answer = codi(*args, "--json")
    error = json.loads(answer.out)["error"]
    assert answer.err == f"Error: {error['message']}\n"
    assert error["exit_code"] == answer.code
    assert codi(*args).out == ""
    assert codi(*args, "--", "--json").out == ""


@pytest.mark.slow
def test_libraries_say_nothing_of_packages_for_fewer_bits_and_of_long_prompts(codi):
    code = "import sys\nfrom codi_hub import cli\ntry:\n    cli.main(['task', 'list', '-q'])\nexcept SystemExit:\n"
    code += "    import diffusers.quantizers.auto, torchao, bitsandbytes\n"
    tokenizer = os.path.join(os.path.dirname(codi_hub.__file__), "nano", "base", "tokenizer")
    code += "    from transformers import CLIPTokenizer\n"
    code += f"    CLIPTokenizer.from_pretrained({tokenizer!r})('a long prompt ' * 99)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("codi run su", ["superres"]),
        ("codi run superres:", ["superres:1", "superres:latest"]),
        ("codi run superres in --base n", ["nano"]),
        ("codi distill de", ["deblur", "depth"]),
        ("codi distill depth --from depth:", ["depth:1", "depth:latest"]),
        ("codi base use n", ["nano"]),
        ("codi task show ca", ["canny"]),
        ("codi show xyz", []),
        ("codi run nosuch:", []),
    ],
)
def test_shells_complete_tasks_references_and_bases(words, answer, codi, monkeypatch):
    monkeypatch.setenv("_CODI_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert codi().out.split() == answer


@pytest.mark.parametrize("command", [("eval", "depth"), ("export", "depth")], ids=" ".join)
def test_a_folder_that_cannot_be_written_is_refused_before_networks_are_loaded(command, codi, tmp_path):
    (tmp_path / "file").touch()
    answer = codi(*command, "-o", tmp_path / "file" / "out")
    assert answer.code in (1, 2)
    assert answer.err.startswith("Error: ")
    assert "cannot be written (Not a directory): choose another folder" in answer.err
