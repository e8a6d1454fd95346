"""The documentation names what exists: every command, option and field, and nothing else."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import pytest
import typer

from codi_hub.cli.application import app as codi_app

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
}


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The generator of the reference pages, which lies outside the package."""
    spec = importlib.util.spec_from_file_location("docs_reference", DOCS / "hooks" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def application() -> typer.Typer:
    return codi_app()


# ---- the command line


def test_every_command_and_option_is_documented(reference):
    app = application()
    assert reference.undocumented(app, reference.cli_page(app), TEXTS) == []


def test_a_command_without_a_page_is_reported_until_a_page_names_it(reference):
    app = application()

    @app.command("polish")
    def polish(
        ref: Annotated[str, typer.Argument(metavar="REF", help="The adapter")],
        hard: Annotated[bool, typer.Option("--hard", help="Twice")] = False,
    ) -> None:
        """Polish an adapter."""

    page = reference.cli_page(app)
    assert reference.undocumented(app, page, TEXTS) == ["codi polish: not named on any page"]
    assert reference.undocumented(app, page, {**TEXTS, "polish.md": "Run `codi polish depth`."}) == []


def test_an_option_without_help_or_reference_is_reported(reference):
    app = application()
    before = reference.cli_page(app)

    @app.command("polish")
    def polish(quietly: Annotated[bool, typer.Option("--quietly")] = False) -> None:
        """Polish."""

    pages = {"polish.md": "codi polish"}
    gaps = reference.undocumented(app, reference.cli_page(app), {**TEXTS, **pages})
    assert gaps == ["codi polish `--quietly`: no help text"]
    assert "codi polish: no section in the reference" in reference.undocumented(app, before, {**TEXTS, **pages})


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """(page, words) of every command line in a code block of the pages."""
    for page, text in TEXTS.items():
        for line in re.findall(r"^    (?:\$ )?(codi .*)$", text, re.MULTILINE):
            yield page, shlex.split(line, comments=True)


def test_command_lines_on_the_pages_exist(reference):
    known = {name: parameters(command) for name, command in reference.commands(application())}
    wrong = []
    for page, words in command_lines():
        name = next((" ".join(words[:n]) for n in (3, 2) if " ".join(words[:n]) in known), None)
        if name is None:
            wrong.append(f"{page}: {' '.join(words)}")
            continue
        flags = {word.partition("=")[0] for word in words if re.match(r"-{1,2}[A-Za-z]", word)}
        wrong += [f"{page}: {name} {flag}" for flag in flags - known[name]]
    assert wrong == []


def parameters(command: Any) -> set[str]:
    return {"--help", *(flag for p in command.params for flag in (*p.opts, *p.secondary_opts))}


# ---- the configuration


def test_every_field_is_documented(reference):
    rows = [
        (title, name, row)
        for title, models in reference.sections()
        for name, model in models
        for row in reference.field_table(model).splitlines()
    ]
    assert rows
    assert [row for row in rows if row[2].endswith("|  |")] == []


def test_fields_that_the_pages_set_exist(reference):
    """Each `-O section.field=...` is a field of the configuration, or of a bundled or example kind or method."""
    used = {(page, path) for page, text in TEXTS.items() for path in re.findall(r"-O ([a-z_.]+)=", text)}
    named = re.compile(r"`((?:data|adapter|loss|training)\.(?!json|safetensors)[a-z_]+)`")
    used |= {(page, path) for page, text in TEXTS.items() for path in named.findall(text)}
    assert used
    tables = dict(reference.sections())
    sections = {model.section: set(model.model_fields) for _, model in tables["Commands"] if model.section}
    sections["adapter"] |= {"width"} | {f for _, model in tables["Adapter kinds"] for f in model.model_fields}
    sections["loss"] |= {"delta"} | {f for _, model in tables["Methods"] for f in model.model_fields}
    wrong = [f"{page}: {path}" for page, path in used if path.split(".")[1] not in sections[path.split(".")[0]]]
    assert wrong == []


def test_each_task_has_a_page_with_its_options(reference):
    for name in reference.task_names():
        page = TEXTS[f"docs/tasks/{name}.md"]
        assert f"<!-- options: {name} -->" in page
        table = reference.filled(page)
        for field in reference.task_options(name).model_fields:
            assert f"| `{field}` |" in table


# ---- the README and the site


def test_the_readme_is_short_and_says_what_the_bundled_adapters_are():
    lines = TEXTS["README.md"].splitlines()
    assert len(lines) <= 140
    assert "PE-CoDi" in lines[2]
    assert "regression" in lines[2]
    for name in ("superres", "inpaint", "depth", "edit", "canny", "deblur"):
        assert f"`{name}`" in lines[2]


@pytest.mark.slow
def test_the_snippet_of_the_readme_runs_as_printed(tmp_path):
    snippet = re.search(r"```python\n(.*?)```", TEXTS["README.md"], re.DOTALL)[1]
    done = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    from PIL import Image

    for name in ("large.png", "sharp.png"):
        assert Image.open(tmp_path / name).size == (256, 256)


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_other_hosts(tmp_path):
    assert (ROOT / "build" / "typing" / "codi_hub" / "tasks").exists() or linked()
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 30
    loading = re.compile(
        r"""<(?:script|img|iframe|source)[^>]+src=["']?(?:https?:)?//|<link[^>]+href=["']?(?:https?:)?//"""
    )
    assert [page.name for page in pages if loading.search(page.read_text(encoding="utf-8"))] == []
    styles = "".join(path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.css"))
    assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", styles)


def linked() -> bool:
    """Create build/typing, as `make typing` does."""
    return subprocess.run(["make", "typing"], cwd=ROOT, capture_output=True).returncode == 0


def test_every_test_that_a_page_names_exists():
    named = {name for text in TEXTS.values() for name in re.findall(r"tests/[\w/]+\.py", text)}
    assert len(named) > 30
    assert not [name for name in named if not (ROOT / name).is_file()]
