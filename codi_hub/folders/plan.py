"""From the inputs on the command line to a list of items, each with one output, one name and one seed.

Everything that can be refused is refused here, before anything is computed.
"""

import functools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Protocol

from codi_hub.errors import InvalidInput, NotFound, UsageError
from codi_hub.folders.prompts import METADATA, beside, checked, listed
from codi_hub.images.io import WRITABLE, has_alpha
from codi_hub.paths import display_path
from codi_hub.seeds import image_seed

ONE_CASE = sys.platform in ("win32", "darwin")  # where A.png and a.png are one file, on most disks


class Planned(Protocol):
    """The part of a task that planning needs."""

    @property
    def name(self) -> str: ...
    @property
    def input_extensions(self) -> frozenset[str]: ...
    @property
    def lossless(self) -> bool: ...
    @property
    def uses_prompt(self) -> bool: ...
    @property
    def needs_prompt(self) -> bool: ...
    def is_sidecar(self, path: Path) -> bool: ...


@dataclass(frozen=True, slots=True)
class Item:
    """One image to make.

    `name` is its path relative to its INPUT, with slashes; `error` is why it cannot begin; `prompt` is not empty.
    """

    input: Path
    output: Path
    name: str
    seed: int
    error: str | None = None
    prompt: str | None = None


@dataclass(frozen=True, slots=True)
class _Root:
    """One INPUT: a folder to walk or one file, and the folder (or the exact file) its outputs go to."""

    path: Path
    out: Path
    is_folder: bool
    exact: bool = False


def plan(
    inputs: Sequence[Path],
    out: Path | None,
    task: Planned,
    *,
    suffix: str = "",
    ext: str = "auto",
    seed: int = 0,
    name: str | None = None,
    recursive: bool = True,
    prompt: str | None = None,
) -> list[Item]:
    """Every item of `inputs`, in the order given and sorted by name within each folder.

    Folders are mirrored under `out` as `{stem}{suffix}.{ext}`. Without `out`, a folder's outputs go to `FOLDER_NAME/`
    beside it and a file's to `STEM_NAME/`, NAME being `name` (the task as registered) or else the template's own. One
    file with an `out` that ends in an image extension is written to exactly that. `ext` auto keeps png and jpg and
    makes everything else png, and for a lossless task jpg too; an image with alpha becomes png even where jpg was asked
    for. Hidden files, sidecars and output folders are never items.

    `prompt` is every item's. Without it, each item of a task that reads one has its own (`batch.prompts`): from the
    `metadata.jsonl` of its INPUT, or of the folder that an INPUT file lies in, else from the text file beside it.

    Raises NotFound for an input that is not there, UsageError for options that mean nothing, for outputs that would
    fall on each other or on an input, where there is no image at all, and where a task that needs prompts lacks some;
    InvalidInput for a wrong line of a metadata.jsonl.
    """
    _check_options(suffix, ext)
    roots = [_root(Path(path), out, name or task.name, alone=len(inputs) == 1) for path in inputs]
    _check_roots(roots)
    wanted = "png" if ext == "auto" and task.lossless else ext
    outs = frozenset(os.path.realpath(root.out) for root in roots if not root.exact)
    common = None if prompt is None else checked(prompt, "--prompt")
    own = prompt is None and task.uses_prompt
    prompts_of = functools.cache(listed)
    items = []
    for root in roots:
        prompts = prompts_of(root.path if root.is_folder else root.path.parent) if own else {}
        for relative, error in _found(root, task, outs, recursive):
            source = root.path / relative if root.is_folder else root.path
            output = root.out if root.exact else root.out / _output_name(relative, source, suffix, wanted)
            item = Item(source, output, relative, image_seed(seed, relative), error, common)
            items.append(_with_own_prompt(item, prompts) if own else item)
    if not items:
        kinds = ", ".join(sorted(task.input_extensions))
        raise UsageError(f"no images in {', '.join(display_path(root.path) for root in roots)}: looked for {kinds}")
    check_outputs(items)
    if task.needs_prompt:
        _check_prompts(items, task.name)
    return items


def _check_options(suffix: str, ext: str) -> None:
    if ext not in ("auto", *WRITABLE):
        raise UsageError(f"cannot write {ext!r} files: use auto, {', '.join(WRITABLE)}")
    if any(char in suffix for char in ("/", "\\", "\0")):
        raise UsageError(f"suffix {suffix!r} contains a path separator: use plain characters, such as _x4")


def _root(path: Path, out: Path | None, label: str, *, alone: bool) -> _Root:
    if not os.path.exists(path):  # unlike Path.exists, never raises
        raise NotFound(f"no such file or folder: {display_path(path)}")
    is_folder = os.path.isdir(path)
    if out is None:
        named = path if path.name not in ("", "..") else path.resolve()
        stem = named.name if is_folder else named.stem
        if not stem:
            raise UsageError(f"{display_path(path)} has no folder beside it: say where to write with -o")
        return _Root(path, named.with_name(f"{stem}_{label}"), is_folder)
    exact = alone and not is_folder and out.suffix.lower().lstrip(".") in WRITABLE and not os.path.isdir(out)
    if not exact and os.path.exists(out) and not os.path.isdir(out):
        raise UsageError(f"the output {display_path(out)} is a file: name a folder")
    return _Root(path, out, is_folder, exact)


def _check_roots(roots: Sequence[_Root]) -> None:
    folders = {os.path.realpath(root.path): root.path for root in roots if root.is_folder}
    for root in roots:
        if (taken := folders.get(os.path.realpath(root.out))) is not None:
            raise UsageError(
                f"the output folder {display_path(root.out)} is the input {display_path(taken)}: name another with -o"
            )


def _found(root: _Root, task: Planned, outs: frozenset[str], recursive: bool) -> Iterator[tuple[str, str | None]]:
    """(relative name, error or None) of each item of one INPUT."""
    if not root.is_folder:
        if not task.is_sidecar(root.path):
            yield root.path.name, None
        return
    for relative, error in walk(root.path, outs, recursive):
        wanted = PurePosixPath(relative).suffix.lower() in task.input_extensions
        if error is not None or (wanted and not task.is_sidecar(root.path / relative)):
            yield relative, error


def walk(root: Path, skip: frozenset[str] = frozenset(), recursive: bool = True) -> Iterator[tuple[str, str | None]]:
    """(slash-separated name relative to `root`, None) of each file below; (folder, why) where one cannot be listed.

    Each real folder is visited once. A link to a folder inside `root` (it is walked anyway), or to one that contains
    `root` (a loop), is not followed; nor are hidden names and the real paths in `skip`.
    """
    top = os.path.realpath(root)
    seen = {top}
    stack = [("", top)]
    while stack:
        folder, real = stack.pop()
        try:
            with os.scandir(root / folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as exc:
            yield folder, f"this folder cannot be listed: {exc.strerror}"
            continue
        below = []
        for entry in entries:
            relative = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith("."):
                continue
            if not _is_folder(entry):
                yield relative, None
            elif recursive:
                linked = entry.is_symlink()
                target = os.path.realpath(entry.path) if linked else os.path.join(real, entry.name)
                if target not in seen and target not in skip and not (linked and _nested(target, top)):
                    seen.add(target)
                    below.append((relative, target))
        stack.extend(reversed(below))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: an item, so that its row says so
        return False


def _with_own_prompt(item: Item, prompts: Mapping[str, str]) -> Item:
    """The item with its prompt; one whose prompt is there and cannot be used cannot begin."""
    try:
        return replace(item, prompt=prompts.get(item.name) or beside(item.input))
    except InvalidInput as error:
        return replace(item, error=item.error or str(error))


def _check_prompts(items: Sequence[Item], task: str) -> None:
    lacking = [display_path(item.input) for item in items if item.prompt is None and item.error is None]
    if lacking:
        some = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if lacking[3:] else "")
        raise UsageError(
            f"task {task} needs a prompt for every image; without one: {some}. "
            f"Give --prompt, a line in {METADATA}, or NAME.txt beside NAME.png"
        )


def _nested(one: str, other: str) -> bool:
    return os.path.commonpath([one, other]) in (one, other)


def _output_name(relative: str, source: Path, suffix: str, ext: str) -> PurePosixPath:
    path = PurePosixPath(relative)
    kind = path.suffix.lower()
    if ext == "auto":
        ext = "jpg" if kind in (".jpg", ".jpeg") else "png"
    elif ext in ("jpg", "jpeg") and kind not in (".jpg", ".jpeg") and has_alpha(source):
        ext = "png"
    return path.parent / f"{path.stem}{suffix}.{ext}"


def check_outputs(items: Sequence[Item]) -> None:
    """No two items share an output, and none is an input: an output replaces the name it is written to.

    Raises UsageError.
    """

    @functools.cache
    def real_folder(folder: Path) -> str:
        return os.path.realpath(folder)

    def place(path: Path) -> str:
        found = os.path.join(real_folder(path.parent), path.name)
        return found.casefold() if ONE_CASE else found

    inputs = {place(item.input): item for item in items}
    taken: dict[str, Item] = {}
    for item in items:
        key = place(item.output)
        if key in inputs:
            raise UsageError(
                f"the output of {display_path(item.input)} would replace the input {display_path(inputs[key].input)}: "
                "name another folder with -o, or give a --suffix"
            )
        if key in taken:
            raise UsageError(
                f"{display_path(taken[key].input)} and {display_path(item.input)} "
                f"would both be written to {display_path(item.output)}: "
                "rename one, or run them into two folders"
            )
        taken[key] = item
