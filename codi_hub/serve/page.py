"""The page: images, a mask and a prompt go in; results come beside the inputs. Components and layout are gradio's.

Values reach the functions here as the browser sent them (`preprocess=False`): uploads are decoded by `Service.works`,
with the checks and limits of the API, and not by gradio.
"""

from __future__ import annotations

import asyncio
import html
import logging
import os
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from anyio import to_thread
from PIL import Image, ImageChops

from codi_hub.errors import CodiError, NotFound, UsageError, describe
from codi_hub.serve import images, schema
from codi_hub.serve.api import Asked, Service
from codi_hub.serve.queue import Work

log = logging.getLogger(__name__)

LOOK = 0.3  # seconds between two looks at what is waited for
KEPT, KEPT_SECONDS = 60, 3600  # results that a page keeps, and how long after it was last used
MAX_STEPS = 50
WIDTH = 180  # px, under which two fields no longer stand side by side
FONTS: dict[str, Any] = {
    "font": ["system-ui", "sans-serif"],
    "font_mono": ["ui-monospace", "monospace"],
}  # none is loaded
CSS = """
footer {display: none !important}
.gradio-container {max-width: 1280px !important; margin: 0 auto}
.grid-container {grid-template-columns: repeat(auto-fill, minmax(96px, 1fr)) !important; min-width: 0 !important}
.grid-container * {min-width: 0 !important}
#card {max-height: 24em; overflow: auto}
#status progress {width: 100%; height: 0.5em; accent-color: var(--primary-500)}
#status p {margin: 0.3em 0}
#title {padding: 0.5em 0}
"""
EMPTY = "Drop images, choose a task, and press Generate."


@dataclass(frozen=True)
class Result:
    """A result of this page: files of the input, as large as the output, and of the output, and what it is."""

    before: str
    after: str
    label: str


class Page:
    """The page's parts, and what happens when they change.

    Args:
        service: what the API answers with.
        folder: of uploads and results, from which alone files are read and answered.
    """

    def __init__(self, service: Service, folder: Path) -> None:
        self.service, self.folder = service, folder

    def blocks(self) -> gr.Blocks:
        """Return the layout with its events."""
        with gr.Blocks(title="CoDi Hub", analytics_enabled=False, fill_width=True) as page:
            gr.Markdown("## CoDi Hub", elem_id="title")
            with gr.Row():
                with gr.Column(min_width=320):
                    self._inputs()
                    self._settings()
                with gr.Column(min_width=320):
                    self._results()
            self._connect(page)
        return page

    def _inputs(self) -> None:
        with gr.Row():
            self.task = gr.Dropdown([], label="Task", elem_id="task", min_width=WIDTH)
            self.version = gr.Dropdown([], label="Version", elem_id="version", min_width=WIDTH)
        with gr.Accordion("About this version", open=False, elem_id="about"):
            self.card = gr.Markdown(elem_id="card")
        sources: Any = ["upload", "clipboard"]
        self.images = gr.Gallery(
            label="Images", elem_id="images", interactive=True, sources=sources, buttons=[], height=260, columns=3,
            fit_columns=False, object_fit="contain",
        )  # fmt: skip
        brush = gr.Brush(colors=["#ff4fd8"], default_size=24, color_mode="fixed")
        self.editor = gr.ImageEditor(
            label="Image: paint what is to be filled", elem_id="editor", visible=False, sources=sources, buttons=[],
            height=420, layers=False, transforms=(), format="png", type="filepath", brush=brush,
        )  # fmt: skip
        self.prompt = gr.Textbox(label="Prompt", lines=2, elem_id="prompt", visible=False)

    def _settings(self) -> None:
        with gr.Row():
            self.steps = gr.Slider(1, MAX_STEPS, 4, step=1, label="Steps", elem_id="steps", min_width=WIDTH)
            self.strength = gr.Slider(0, 1, 1, step=0.05, label="Strength", elem_id="strength", min_width=WIDTH)
        with gr.Accordion("More settings", open=False, elem_id="more"):
            self.seed = gr.Textbox(label="Seed (empty: a random one)", elem_id="seed")
            self.variants = gr.Slider(1, schema.MAX_VARIANTS, 1, step=1, label="Variants of each image")
            self.size = gr.Textbox("auto", label="Size: auto, or WIDTHxHEIGHT", elem_id="size")
            self.options = gr.Textbox("{}", label="Options of the task, as JSON", elem_id="options")
        with gr.Row():
            self.run = gr.Button("Generate", variant="primary", elem_id="run", min_width=120)
            self.stop = gr.Button("Stop", elem_id="stop", min_width=80)

    def _results(self) -> None:
        self.made = gr.State([], time_to_live=KEPT_SECONDS)
        self.status = gr.HTML(_line(EMPTY), elem_id="status")
        self.slider = gr.ImageSlider(
            label="Before and after", elem_id="slider", type="filepath", buttons=["fullscreen"], max_height=640
        )
        self.save = gr.DownloadButton("Download", elem_id="download", interactive=False)
        self.gallery = gr.Gallery(
            label="Made on this page", elem_id="made", buttons=[], height=240, columns=4, fit_columns=False,
            allow_preview=False, object_fit="contain",
        )  # fmt: skip

    def _connect(self, page: gr.Blocks) -> None:
        """Say what happens when a part changes."""
        quiet: Any = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        chosen = [self.version, self.card, self.images, self.editor, self.prompt, self.steps]
        page.load(self.tasks, None, [self.task], **quiet).then(self.versions, [self.task], chosen, **quiet)
        self.task.input(self.versions, [self.task], chosen, **quiet)
        self.version.input(self.about, [self.version], chosen[1:], **quiet)
        self.version.focus(self.refreshed, [self.task, self.version], [self.version], **quiet)
        fields = [self.version, self.images, self.editor, self.prompt, self.steps, self.strength, self.seed,
                  self.variants, self.size, self.options, self.made]  # fmt: skip
        shown = [self.status, self.slider, self.save, self.gallery, self.made]
        generating = self.run.click(
            self.generate, fields, shown, **quiet | {"queue": True}, preprocess=False, concurrency_limit=None
        )
        self.stop.click(lambda: _line("Stopped."), None, [self.status], cancels=[generating], **quiet)
        self.gallery.select(self.select, [self.made], [self.slider, self.save], **quiet)

    # ---- what can be chosen

    def tasks(self) -> dict[str, Any]:
        """Return the tasks that have adapters, by name, of further bases with the base before it."""
        names = [*dict.fromkeys(name.partition(":")[0] for name in self._models())]
        return gr.update(choices=names, value=names[0] if names else None)

    def versions(self, task: str | None) -> list[Any]:
        """Return a task's versions and tags, and what belongs to the first."""
        names = [name for name in self._models() if task and name.startswith(f"{task}:")]
        first = next((name for name in names if name.endswith(":latest")), names[0] if names else None)
        return [gr.update(choices=names, value=first), *self.about(first)]

    def refreshed(self, task: str | None, version: str | None) -> dict[str, Any]:
        """Return a task's versions and tags as they are now."""
        names = [name for name in self._models() if task and name.startswith(f"{task}:")]
        return gr.update(choices=names, value=version if version in names else names[0] if names else None)

    def about(self, version: str | None) -> list[Any]:
        """Return a version's card, and which inputs its task has."""
        if not version:
            return ["No adapters: `codi distill` trains some.", *[gr.update()] * 4]
        try:
            row = self.service.resolve(version)
        except NotFound as error:
            raise gr.Error(str(error), print_exception=False) from None
        task = self.service.task(row, {})
        return [
            self.service.card(row) or "It has no card.",
            gr.update(visible=not task.reads_alpha),
            gr.update(visible=task.reads_alpha),
            gr.update(visible=task.uses_prompt, label="Prompt" if task.needs_prompt else "Prompt (optional)"),
            gr.update(value=min(MAX_STEPS, row.steps)),
        ]

    def _models(self) -> list[str]:
        return [model["id"] for model in self.service.models() if ":" in model["id"]]

    # ---- generation

    async def generate(
        self, version: str, uploads: Any, painted: Any, prompt: str, steps: Any, strength: Any, seed: str,
        variants: Any, size: str, options: str, made: list[Result],
    ) -> AsyncIterator[list[Any]]:  # fmt: skip
        """Generate; yield the status, and at last the results. Closing it takes what waits out of the queue."""
        works: Sequence[Work] = []
        unchanged = [gr.skip()] * 4
        try:
            fields = {"model": version or "", "prompt": prompt or "", "num_inference_steps": steps, "n": variants,
                      "strength": strength, "size": size or "auto", "options": options or "{}"}  # fmt: skip
            fields |= {"seed": seed.strip()} if seed and seed.strip() else {}
            yield [_line("Reading the images"), *unchanged]
            works = await to_thread.run_sync(self._begin, fields, uploads, painted, limiter=self.service.decoders)
            futures = [asyncio.wrap_future(work.result) for work in works]
            while not (await asyncio.wait(futures, timeout=LOOK))[0].issuperset(futures):
                done = sum(one.done() for one in futures)
                waiting = self.service.queue.length
                yield [_line(f"{done} of {len(works)} images; {waiting} in the queue", done / len(works)), *unchanged]
            results, failed = await to_thread.run_sync(self._finished, works)
        except CodiError as error:
            yield [_line(str(error), error=True), *unchanged]
            return
        except Exception as error:
            log.error("unexpected %s", describe(error), exc_info=bool(os.environ.get("CODI_DEBUG")))
            yield [_line(f"unexpected {type(error).__name__}", error=True), *unchanged]
            return
        finally:
            for work in works:
                work.result.cancel()
        made = [*results, *made][:KEPT]
        text = "; ".join([f"{len(results)} of {len(works)} images", *(one.label for one in results[:1]), *failed])
        if not results:
            yield [_line(text, error=True), *unchanged]
            return
        shown = [(one.after, one.label) for one in made]
        yield [_line(text, error=bool(failed)), *_shown(results[0]), shown, made]

    def select(self, made: list[Result], event: gr.SelectData) -> list[Any]:
        """Return what shows a result that was chosen in the gallery."""
        index = event.index if isinstance(event.index, int) else 0
        return _shown(made[index]) if index < len(made) else [gr.skip(), gr.skip()]

    def _begin(self, fields: Mapping[str, Any], uploads: Any, painted: Any) -> list[Work]:
        """Return what a request has to wait for, in the queue. Raises CodiError."""
        wanted = schema.parsed(fields)
        task = self.service.task(self.service.resolve(wanted.model), {})
        asked = Asked()
        if task.reads_alpha:
            files = painted if isinstance(painted, Mapping) else {}
            if files.get("background"):
                asked.images.append(self._read(files["background"]))
                layers = [self._read(layer) for layer in files.get("layers") or []]
                asked.mask = _painted([images.read(layer, self.service.options.max_pixels, "mask") for layer in layers])
        else:
            entries = uploads if isinstance(uploads, list) else []
            asked.images += [self._read(entry.get("image")) for entry in entries if isinstance(entry, Mapping)]
        works = self.service.works(wanted, asked)
        self.service.queue.submit(works)
        return works

    def _read(self, file: Any) -> bytes:
        """Return the bytes of an upload. Raises UsageError for any other file."""
        path = Path(str(file.get("path"))) if isinstance(file, Mapping) else Path()
        try:
            inside = path.resolve(strict=True).is_relative_to(self.folder)
            if inside and path.is_file() and path.stat().st_size <= self.service.options.max_body:
                return path.read_bytes()
        except (OSError, ValueError):
            pass
        raise UsageError("image: the upload is not there any more; send it again")

    def _finished(self, works: Sequence[Work]) -> tuple[list[Result], list[str]]:
        """Return the results that were made, and why others were not."""
        results, failed = [], dict[str, None]()
        for work in works:
            if error := work.result.exception():
                failed[describe(error)] = None
                continue
            image = work.result.result()
            results.append(
                Result(self._write(_before(work, image)), self._write(image), f"{work.ref}, seed {work.seed}")
            )
            self.service.metrics.images.labels(work.ref).inc()
        return results, [*failed]

    def _write(self, image: Image.Image) -> str:
        file = self.folder / f"codi-{secrets.token_hex(8)}.png"
        file.write_bytes(images.encoded(image, "png"))
        return str(file)


def _painted(layers: Sequence[Image.Image]) -> bytes | None:
    """Return a mask as PNG, white where a layer is painted; None where none is: then the image's own alpha counts."""
    mask: Image.Image | None = None
    for layer in layers:
        if "A" in layer.getbands():
            paint = layer.getchannel("A").point(lambda value: 255 if value > 127 else 0)
            mask = ImageChops.lighter(mask, paint) if mask else paint
    return images.encoded(mask, "png") if mask and mask.getbbox() else None


def _before(work: Work, made: Image.Image) -> Image.Image:
    """Return the input, as large as the output."""
    image = work.image
    if "A" in image.getbands():
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB").resize(made.size, Image.Resampling.BICUBIC)


def _shown(result: Result) -> list[Any]:
    """Return the values of the slider and the download button."""
    return [(result.before, result.after), gr.update(value=result.after, interactive=True)]


def _line(text: str, share: float | None = None, *, error: bool = False) -> str:
    """Return a line of the status, with a progress bar for a share of the work."""
    bar = "" if share is None else f'<progress max="1" value="{min(1.0, max(0.0, share)):.3f}"></progress>'
    colour = ' style="color: var(--error-text-color, #b91c1c)"' if error else ""
    return f'<p role="status"{colour}>{html.escape(text)}</p>{bar}'
