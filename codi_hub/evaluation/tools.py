"""Other tools beside an adapter: a folder of their outputs, or a command that makes one from an input."""

from __future__ import annotations

import re
import shlex
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from codi_hub.errors import CodiError, InvalidInput, NotFound, UsageError, one_line, prefixed
from codi_hub.evaluation.context import Samples
from codi_hub.evaluation.external import INPUTS, MASKS, REFERENCES, image_name
from codi_hub.images.formats import EXTENSIONS
from codi_hub.images.io import decode_image, open_image
from codi_hub.paths import display_path

PLACES = {INPUTS: "{input}", MASKS: "{mask}"}
OUTPUT = "{output}"
Inputs = Mapping[str, Sequence[np.ndarray]]
"""What a tool is given: INPUTS, and MASKS where the task has them, uint8 (H, W, 3 or 4) and (H, W)."""


@dataclass(frozen=True)
class Tool:
    """A row of the table that another tool makes.

    Attributes:
        name: of the row.
        folder: of its outputs, named as the inputs that `save_images` writes; None: the command makes them.
        command: program and arguments with the places {input} and {output}, and {mask} where the task has one.
    """

    name: str
    folder: Path | None = None
    command: tuple[str, ...] = ()

    def samples(self, inputs: Inputs, first: int, shape: tuple[int, ...]) -> Samples:
        """Return an output for each input, and the seconds per image that the command took.

        Args:
            inputs: what the tool is given.
            first: number of the first of these images in the evaluation.
            shape: (H, W, 3) of the outputs.

        Raises:
            CodiError: a missing or damaged output, one of another shape, or a command that fails.
        """
        start, images = time.perf_counter(), []
        with prefixed(f"against {self.name}"):
            for k in range(len(inputs[INPUTS])):
                if self.folder is not None:
                    image = _read(_found(self.folder, image_name(first + k)))
                else:
                    image = self._run({kind: values[k] for kind, values in inputs.items()})
                if image.shape != shape:
                    width, height = image.shape[1], image.shape[0]
                    raise InvalidInput(f"an output has {width}x{height} px, and {shape[1]}x{shape[0]} are needed")
                images.append(image)
        return Samples(images, None if self.folder else (time.perf_counter() - start) / len(images))

    def _run(self, images: Mapping[str, np.ndarray]) -> np.ndarray:
        """Start the command for one image, in a temporary folder of its own."""
        with tempfile.TemporaryDirectory(prefix="codi-") as name:
            output = Path(name) / "output.png"
            places = {OUTPUT: str(output)}
            for kind, image in images.items():
                file = Path(name) / f"{kind}.png"
                Image.fromarray(image).save(file)
                places[PLACES[kind]] = str(file)
            words = [_filled(word, places) for word in self.command]
            try:
                done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False)
            except OSError as error:
                raise UsageError(f"{words[0]}: cannot be started ({error.strerror})") from error
            if done.returncode:
                last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
                raise CodiError(f"exit code {done.returncode}: {one_line(last, 160)}")
            if not output.exists():
                raise CodiError("the command has not written {output}")
            return _read(output)


def tool(text: str) -> Tool | None:
    """Return the tool of NAME=FOLDER or NAME=COMMAND; None for a text without "=".

    Raises:
        UsageError: no name, or what is neither a folder nor a command with {input} and {output}.
    """
    name, equals, rest = text.partition("=")
    if not equals:
        return None
    if not re.fullmatch(r"[\w.+-]+", name) or name in (INPUTS, MASKS, REFERENCES):
        raise UsageError(f"against {one_line(text, 80)}: before = comes a row's name of letters, digits and . + - _")
    if PLACES[INPUTS] in rest and OUTPUT in rest:
        try:
            return Tool(name, command=tuple(shlex.split(rest)))
        except ValueError as error:
            raise UsageError(f"against {name}: {one_line(rest, 80)}: {error}") from None
    if rest and Path(rest).is_dir():
        return Tool(name, folder=Path(rest))
    places = f"{PLACES[INPUTS]} and {OUTPUT}"
    raise UsageError(f"against {name}: {one_line(rest, 80) or 'nothing'} is no folder, and no command with {places}")


def _filled(word: str, places: Mapping[str, str]) -> str:
    for place, path in places.items():
        word = word.replace(place, path)
    return word


def _found(folder: Path, stem: str) -> Path:
    for extension in sorted(EXTENSIONS):
        if (file := folder / f"{stem}{extension}").is_file():
            return file
    raise NotFound(f"{display_path(folder)} has no image {stem}; `save_images` writes the inputs under those names")


def _read(file: Path) -> np.ndarray:
    with prefixed(file.name):
        image = decode_image(open_image(file)).image
    if not isinstance(image, Image.Image):
        raise InvalidInput(f"{file.name}: not an image of 8 bits")
    return np.asarray(image.convert("RGB"))
