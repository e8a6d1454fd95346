"""Planning of a run: from input paths to a list of items, each with an output path, a name and a seed.

Everything that can be refused is refused here, before anything is computed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

from codi_hub.config.options import RunOptions
from codi_hub.errors import CodiError, InvalidInput, NotFound, UsageError
from codi_hub.events import Message, OnEvent, ignore
from codi_hub.folders.left_out import NO_NAME, OnLeftOut, report_left_out
from codi_hub.folders.names import places, renamed, separate
from codi_hub.folders.prompts import Prompts
from codi_hub.folders.walk import walk
from codi_hub.images.formats import JPEG_EXTENSIONS
from codi_hub.images.io import DEEP, MAX_BYTES, WRITABLE, has_alpha, names_image
from codi_hub.images.sidecars import METADATA, clean_prompt
from codi_hub.objects import listing, local_copies
from codi_hub.paths import absolute_path, display_path, path_text
from codi_hub.seeds import image_seed, variant_seed
from codi_hub.urls import UrlPath, as_path

if TYPE_CHECKING:
    from codi_hub.tasks import Task

Origins = Callable[[Sequence[str]], Mapping[str, str]]
"""Outputs, as absolute paths -> the inputs that codi made them from, of those that it made."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image to generate. A million of them are held in memory: paths are texts.

    Attributes:
        input_file: path of the input.
        output_file: path of the output.
        name: path relative to the input folder, with slashes.
        seed: derived from the run's seed, `name` and `variant` alone.
        error: why the item cannot be processed, or None.
        prompt: not empty, or None.
        variant: 0 for the first image of the input.
        out: the output folder that `name` is mirrored under; None where the user named the output's file.
        suffix: of the stem of the output's name.
        also: files of further conditions.
        companions: paths of the objects that lie beside the input, or beside another condition, and belong to it.
        stamp: see `objects.stamp`, of an item with a file in a store.
    """

    input_file: str
    output_file: str
    name: str
    seed: int
    error: str | None = None
    prompt: str | None = None
    variant: int = 0
    out: Path | None = None
    suffix: str = ""
    also: tuple[Path, ...] = ()
    companions: tuple[str, ...] = ()
    stamp: int | None = None

    @property
    def input(self) -> Path:
        """Return the path of the input."""
        return as_path(self.input_file)

    @property
    def output(self) -> Path:
        """Return the path of the output."""
        return as_path(self.output_file)

    @property
    def mark(self) -> str:
        """Return what the output's name has after its stem and suffix: "_v2" for the second image of the input."""
        return f"_v{self.variant + 1}" if self.variant else ""


class Items(Protocol):
    """The items of a run by index: all of them, or those that a worker has."""

    def __getitem__(self, index: int, /) -> Item: ...


@dataclass(frozen=True, slots=True)
class _Root:
    """One input path: a folder or a file, and the folder (or, if `exact`, the file) for its outputs."""

    path: Path
    out: Path
    is_folder: bool
    exact: bool = False


def plan(
    inputs: Sequence[Path],
    task: Task,
    options: RunOptions,
    *,
    task_name: str | None = None,
    origins: Origins = lambda outputs: {},
    on_event: OnEvent = ignore,
    on_left_out: OnLeftOut = lambda path, why: None,
) -> list[Item]:
    """Return every item of `inputs`, in the order given, sorted by name within each folder.

    A folder is mirrored under `options.out` as `{stem}{suffix}.{ext}`. Without `out`, a folder's outputs go to
    `FOLDER_TASK/` beside it and a file's to `STEM_TASK/`. One file with an `out` that ends in an image extension is
    written to exactly that path. `ext` auto keeps png and jpg and makes everything else png, and jpg too for a lossless
    task; an image with alpha becomes png even if jpg was requested. Outputs that would be one file get their extension
    or folder added; see `names.separate`. Hidden files, sidecar files, output folders, and files that codi made from
    images of the same folder are never items. With `variants`, an input has that many items: the first is the one that
    it has without, the others have seeds and names derived from it.

    `options.prompt` is every item's prompt. Without it, each item of a task that uses prompts has its own: from the
    nearest `metadata.jsonl` with a line for it, from its folder up to the input folder, else from the text file beside
    it. Names match as in `images.sidecars`.

    Args:
        options: `out`, `suffix`, `ext`, `seed`, `image_seed`, `variants`, `bits`, `recursive` and `prompt` are read.
        task_name: TASK in names of output folders; default: the name of the built-in task.
        origins: finds the files that codi made.
        on_event: told of outputs that are renamed, and of files that are left out because codi made them.
        on_left_out: takes (path, reason) of files in the input folders that are neither items nor read for one, and of
            lines in a metadata.jsonl whose file does not exist.

    Raises:
        NotFound: an input does not exist.
        UsageError: an impossible option, an input given twice, outputs that would replace an input, no image at all,
            or no prompt for an item of a task that needs one.
        InvalidInput: a wrong line of a metadata.jsonl.
    """
    if any(char in options.suffix for char in ("/", "\\", "\0")):
        raise UsageError(f"suffix {options.suffix!r} contains a path separator: use plain characters, such as _x4")
    label, alone = task_name or task.name, len(inputs) == 1
    roots = [_root(path, options.out, label, alone=alone, recursive=options.recursive) for path in inputs]
    _check_roots(roots)
    ext = _extension(task, options, roots)
    outs = frozenset(_real(root.out) for root in roots if not root.exact)
    common = None if options.prompt is None else clean_prompt(options.prompt, "prompt")
    own = options.prompt is None and task.uses_prompt
    prompts = Prompts() if own else None
    items: list[Item] = []
    others: list[Path] = []
    for root in roots:
        files = _without_made(root, list(_files(root, task, outs, options.recursive, others)), origins, on_event)
        for relative, error in files:
            source = _joined(root.path, relative) if root.is_folder else str(root.path)
            name = None if root.exact else _output_name(relative, source, options.suffix, ext)
            output = str(root.out) if name is None else _joined(root.out, name)
            out, seed = None if root.exact else root.out, image_seed(options.seed, relative)
            item = Item(source, output, relative, seed, error, common, 0, out, options.suffix)
            folder = root.path if root.is_folder else root.path.parent
            items.append(_with_own_prompt(item, folder, prompts) if prompts else item)
    if not items:
        kinds = ", ".join(sorted(task.input_extensions))
        raise UsageError(f"no images in {', '.join(display_path(root.path) for root in roots)}: looked for {kinds}")
    items = _with_variants(_with_image_seed(items, options.image_seed), options.variants)
    items = with_own_outputs(items, on_event)
    folders = [root.path for root in roots if root.is_folder]
    for folder in folders:
        for name in listing(folder, options.recursive).refused if isinstance(folder, UrlPath) else ():
            on_left_out(folder / name.lstrip("/"), NO_NAME)
    report_left_out(others, (item.input for item in items), task, on_left_out, prompts, folders)
    if task.needs_prompt:
        _check_prompts(items, task.name)
    return items


def with_own_outputs(items: Sequence[Item], on_event: OnEvent = ignore) -> list[Item]:
    """Return the items with an output each; see `names.separate` and `check_outputs`."""
    separated = separate(items)
    if text := renamed(items, separated):
        on_event(Message(text))
    check_outputs(separated)
    return separated


def _without_made(
    root: _Root, files: list[tuple[str, str | None]], origins: Origins, on_event: OnEvent
) -> list[tuple[str, str | None]]:
    """Return the files that codi did not make from others of the same folder; say how many it left out."""
    made = _made(root, [relative for relative, _ in files], origins)
    if made:
        where = display_path(root.path)
        on_event(Message(f"Left out: {len(made)} images in {where} that codi made from others there"))
    return [(relative, error) for relative, error in files if relative not in made]


def _with_image_seed(items: list[Item], image_seed: int | None) -> list[Item]:
    """Return the one item with the seed that is given for it. Raises UsageError for several items."""
    if image_seed is None:
        return items
    if len(items) > 1:
        raise UsageError(f"image_seed is of one image, and there are {len(items)}: give one image, or set the seed")
    return [replace(items[0], seed=image_seed)]


def _with_variants(items: list[Item], count: int) -> list[Item]:
    if count == 1:
        return items
    return [_variant(item, number) for item in items for number in range(count)]


def _variant(item: Item, number: int) -> Item:
    """Return the item of a further image of the same input."""
    other = replace(item, variant=number, seed=variant_seed(item.seed, number))
    return replace(other, output_file=str(item.output.with_name(f"{item.output.stem}{other.mark}{item.output.suffix}")))


def _root(path: Path, out: Path | None, label: str, *, alone: bool, recursive: bool) -> _Root:
    is_folder = _is_folder(path, recursive)
    if out is None:
        named = path if path.name not in ("", "..") else path.resolve()
        stem = named.name if is_folder else named.stem
        if not stem or (isinstance(path, UrlPath) and len(path.parts) < 3):
            raise UsageError(f"{display_path(path)} has no folder beside it: choose an output folder")
        return _Root(path, named.with_name(f"{stem}_{label}"), is_folder)
    exact = names_image(out) and (isinstance(out, UrlPath) or not os.path.isdir(out))
    if exact and not (alone and not is_folder):
        raise UsageError(f"out {display_path(out)}: the name of one image, and not one image is given: name a folder")
    if exact and out.suffix.lower().lstrip(".") not in WRITABLE:
        raise UsageError(f"out {display_path(out)}: an image is written as {', '.join(WRITABLE)}: choose one of these")
    if not exact and not isinstance(out, UrlPath) and os.path.exists(out) and not os.path.isdir(out):
        raise UsageError(f"the output {display_path(out)} is a file: name a folder")
    return _Root(path, out, is_folder, exact)


def _is_folder(path: Path, recursive: bool) -> bool:
    """Return whether an input is a folder, and no file. Raises NotFound."""
    if isinstance(path, UrlPath):
        found = listing(path, recursive)
        if found.folders or found.is_file:
            return not found.is_file
    elif os.path.exists(path):  # unlike Path.exists, never raises
        return os.path.isdir(path)
    raise NotFound(f"no such file or folder: {display_path(path)}")


def _real(path: Path) -> str:
    return str(path) if isinstance(path, UrlPath) else os.path.realpath(path)


def _extension(task: Task, options: RunOptions, roots: Sequence[_Root]) -> str:
    """Return the type of output files, or auto where it is the input's.

    Raises:
        UsageError: outputs of 16 bits that the task does not make, or that a file type does not hold.
    """
    if options.bits == 8:
        return "png" if options.ext == "auto" and task.lossless else options.ext
    ext = "png" if options.ext == "auto" else options.ext
    if not task.finishes_values:
        raise UsageError(f"bits 16: task {task.name} finishes its images in 8 bits: leave it out")
    types = {root.out.suffix.lower()[1:] if root.exact else ext for root in roots}
    if shallow := sorted(types - {*DEEP}):
        raise UsageError(f"bits 16: a file of type {shallow[0]} has 8 bits per channel: choose {', '.join(DEEP)}")
    return ext


def _made(root: _Root, names: Sequence[str], origins: Origins) -> set[str]:
    """Return the names of the files in a folder that codi made from other files of the folder."""
    if not root.is_folder:
        return set()
    folder = absolute_path(root.path)
    paths = {path_text(os.path.join(folder, name)): name for name in names}
    found = origins(list(paths))
    inside = os.path.join(folder, "")
    return {paths[output] for output, source in found.items() if source.startswith(inside)}


def _check_roots(roots: Sequence[_Root]) -> None:
    folders = {_real(root.path): root.path for root in roots if root.is_folder}
    for root in roots:
        if (taken := folders.get(_real(root.out))) is not None:
            raise UsageError(
                f"the output folder {display_path(root.out)} is the input {display_path(taken)}: choose another"
            )


def _files(
    root: _Root, task: Task, outs: frozenset[str], recursive: bool, others: list[Path]
) -> Iterator[tuple[str, str | None]]:
    """Yield (relative name, error or None) of each item of one input; add the path of every other file to `others`."""
    if not root.is_folder:
        if task.is_sidecar(root.path):
            others.append(root.path)
        else:
            yield root.path.name, None
        return
    for relative, error in _walked(root.path, outs, recursive):
        wanted = PurePosixPath(relative).suffix.lower() in task.input_extensions
        if error is not None or (wanted and not task.is_sidecar(root.path / relative)):
            yield relative, error
        else:
            others.append(root.path / relative)


def _walked(folder: Path, outs: frozenset[str], recursive: bool) -> Iterator[tuple[str, str | None]]:
    if isinstance(folder, UrlPath):
        inside = f"{folder}/"
        skip = frozenset(out.removeprefix(inside) for out in outs if out.startswith(inside))
        return ((name, None) for name in listing(folder, recursive).walk(skip))
    return walk(folder, outs, recursive)


def _with_own_prompt(item: Item, folder: Path, prompts: Prompts) -> Item:
    """Return the item with its own prompt; a prompt that cannot be used is the item's error."""
    try:
        return replace(item, prompt=prompts.of(item.input, folder, item.name))
    except InvalidInput as error:
        return replace(item, error=item.error or str(error))


def _check_prompts(items: Sequence[Item], task: str) -> None:
    missing = [display_path(item.input) for item in items if item.prompt is None and item.error is None]
    if missing:
        some = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if missing[3:] else "")
        raise UsageError(
            f"task {task} needs a prompt for every image; without one: {some}. "
            f"Give one prompt for all images, a line in {METADATA}, or NAME.txt beside NAME.png"
        )


def _output_name(relative: str, source: str, suffix: str, ext: str) -> str:
    """Return the name of an output below its folder, with slashes."""
    stem, kind = os.path.splitext(relative)
    stem, kind = (stem, kind.lower()) if kind != "." else (relative, "")  # as `Path.suffix`
    if ext == "auto":
        ext = "jpg" if kind in JPEG_EXTENSIONS else "png"
    elif ext in ("jpg", "jpeg") and kind not in JPEG_EXTENSIONS and _has_alpha(as_path(source)):
        ext = "png"
    return f"{stem}{suffix}.{ext}"


def _has_alpha(path: Path) -> bool:
    try:
        with local_copies([path], MAX_BYTES) as local:
            return has_alpha(local(path))
    except CodiError:  # of the store; loading says it
        return False


def _joined(folder: Path, name: str) -> str:
    """Return the text of `folder / name`, for a name without dots or doubled slashes."""
    text = str(folder)
    return name if text == "." else os.path.join(text, name)


def check_outputs(items: Sequence[Item]) -> None:
    """Check that no two items have the same output, and that no output is an input.

    Raises:
        UsageError: they do, with both paths.
    """
    place = places()
    hashes = {hash(place(item.output_file)) for item in items}
    if len(hashes) == len(items) and not any(hash(place(item.input_file)) in hashes for item in items):
        return
    inputs = {place(item.input_file): item for item in items}
    taken: dict[str, Item] = {}
    for item in items:
        key = place(item.output_file)
        if key in inputs:
            raise UsageError(
                f"the output of {display_path(item.input)} would replace the input {display_path(inputs[key].input)}: "
                "choose another output folder, or a suffix"
            )
        if key in taken and place(taken[key].input_file) == place(item.input_file):
            raise UsageError(
                f"{display_path(item.input)} would be written to {display_path(item.output)} twice: give it once, or "
                "with another suffix or output folder"
            )
        if key in taken:
            raise UsageError(
                f"{display_path(taken[key].input)} and {display_path(item.input)} "
                f"would both be written to {display_path(item.output)}: "
                "rename one, or run them into two folders"
            )
        taken[key] = item
