"""What a task is: how a training pair is made, how an input becomes a condition, how an output becomes a picture."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from PIL import Image
from pydantic import AfterValidator, BaseModel, ConfigDict, FilePath, ValidationError

from codi_hub.errors import InvalidInput, UsageError
from codi_hub.images.filters import to_uint8

IMAGES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".tga", ".avif", ".jp2"}
)


def _located(source: str) -> str:
    """A path that exists as an absolute one, since a stored option outlives the working directory."""
    path = Path(source).expanduser()
    return os.path.abspath(path) if path.exists() else source


Located = Annotated[str, AfterValidator(_located)]  # a path, or something else such as a hub id
ExistingFile = Annotated[FilePath, AfterValidator(Path.absolute)]


MIRRORED = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
SIDE = re.compile(rf"\b({'|'.join(MIRRORED)})\b")


def other_way_round(text: str) -> str:
    """The text with the words left and right exchanged."""
    return SIDE.sub(lambda found: MIRRORED[found[0]], text)


@dataclass(frozen=True)
class Pair:
    """A training pair of equal size: `target` uint8 (H, W, 3), `condition` uint8 (H, W, condition_channels)."""

    target: np.ndarray
    condition: np.ndarray
    prompt: str

    def mirrored(self) -> Pair:
        """The pair as a mirror shows it, left and right exchanged in its prompt too."""
        return Pair(self.target[:, ::-1], self.condition[:, ::-1], other_way_round(self.prompt))


@dataclass(frozen=True)
class Prepared:
    """An input ready for the networks.

    Attributes:
        values: the condition as it is kept, (H, W, condition_channels) of the output's size: uint8, or float32 in
            [0, 1] where 8 bits are too few. A large picture fits into memory so.
        size: (width, height) of the output.
        keep: what `finish` needs of the input beside the condition.
        opaque: the input's alpha channel was used up; otherwise the output gets it.
    """

    values: np.ndarray
    size: tuple[int, int]
    keep: dict[str, Any] = field(default_factory=dict)
    opaque: bool = False

    @property
    def condition(self) -> np.ndarray:
        """What the networks take: float32 (H, W, condition_channels) in [0, 1], made anew from `values` if need be."""
        return self.values if self.values.dtype == np.float32 else self.values.astype(np.float32) / 255

    @property
    def bytes(self) -> np.ndarray:
        """The condition as uint8, rounded if need be."""
        return self.values if self.values.dtype == np.uint8 else to_uint8(self.values)

    def window(self, rows: slice, columns: slice) -> Prepared:
        """A part of it, as if it were a whole."""
        values = self.values[rows, columns]
        return replace(self, values=values, size=(values.shape[1], values.shape[0]))


class Task:
    """One image task. A subclass says how; it knows nothing of networks, registries or files but the one it is given.

    `prepare`, `finish` and `load` are called from several threads at once.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    condition_channels: ClassVar[int] = 3
    data: ClassVar[str | None]  # pictures made on the fly that it trains on unless told otherwise; None: it cannot
    uses_prompt: ClassVar[bool] = False
    needs_prompt: ClassVar[bool] = False  # without one there is nothing to do
    reads_pairs: ClassVar[bool] = True  # `make_pair` takes an example's own `condition`, where it has one
    reads_alpha: ClassVar[bool] = False  # `prepare` gets an input's alpha channel as the fourth
    lossless: ClassVar[bool] = False  # its outputs are never made JPEG without being asked
    input_extensions: ClassVar[frozenset[str]] = IMAGES
    finishes_tiles: ClassVar[bool] = False  # `finish` of a part of a picture is that part of the finished picture
    training_size: ClassVar[float] = 1.0  # side of the training pictures, as a share of what the base is made for
    distill: ClassVar[dict[str, Any]] = {}  # defaults of `codi distill` that this task wants otherwise
    score: ClassVar[str] = "psnr"  # the metric that decides what `latest` is; higher is better

    class Options(BaseModel):
        """What `--set` and `codi task add` may set."""

        model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

        data: Located | None = None
        """Training data of its own, as in `codi distill --data`."""

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        """Raises UsageError, on one line, for an option that does not exist or a value it cannot have."""
        try:
            self.options: Any = self.Options(**(options or {}))
        except ValidationError as error:
            raise UsageError(f"task {self.name}: {_one_line(error, self.Options)}") from None

    @property
    def training_data(self) -> str:
        """What it trains on unless told otherwise, as `codi_hub.data.open_source` takes it. Raises UsageError."""
        data = self.options.data or self.data
        if data is None:
            raise UsageError(
                f"task {self.name} has no data of its own: name some with --data, or keep it with a task, "
                f"`codi task add NAME --like {self.name} --data FOLDER`"
            )
        return data

    @property
    def whole_pictures(self) -> bool:
        """Whether it trains on whole pictures made smaller, rather than on pieces at full resolution."""
        return self.uses_prompt

    def make_pair(self, example: Mapping[str, Any], rng: np.random.Generator) -> Pair:
        """A training pair from an example of `codi_hub.data`. Raises InvalidInput if the example lacks what it needs.

        Args:
            example: `image` uint8 (H, W, 3) and, where the source has them, `depth` float32 (H, W), `caption`,
                `condition` uint8 (H, W, 3), `edited` uint8 (H, W, 3), `edit_prompt`.
            rng: the only source of randomness.
        """
        raise TypeError(f"task {self.name} does not say how a training pair is made")

    def prepare(
        self, image: Image.Image | np.ndarray, path: Path | None = None, rng: np.random.Generator | None = None
    ) -> Prepared:
        """The condition of an input: an image, or an array as `load` returned it.

        `path` is where the input came from, for tasks with files beside it.
        """
        raise TypeError(f"task {self.name} does not say how an input is prepared")

    def finish(self, output: np.ndarray, prepared: Prepared) -> np.ndarray:
        """float32 (H, W, 3) in [0, 1], as the networks made it, to the picture: uint8 (H, W, 3)."""
        return to_uint8(output)

    def untouched(self, prepared: Prepared) -> bool:
        """Whether nothing of an output gets into the picture, so that this part of it need not be computed."""
        return False

    def is_sidecar(self, path: Path) -> bool:
        """Whether the file belongs to another input, and is none itself."""
        return False

    def companions(self, path: Path) -> Sequence[Path]:
        """The other files that decide what becomes of the input at `path`: where one changes, it is made again."""
        return ()

    def load(self, path: Path) -> Image.Image | np.ndarray:
        """The input at `path`: an image as stored, or an array that `prepare` knows what to do with."""
        return Image.open(path)

    def adherence(self, output: np.ndarray, condition: np.ndarray) -> float | None:
        """How well a float32 (H, W, 3) output in [0, 1] follows its condition, without a true target; higher is better.

        None where it cannot be told.
        """
        return None

    def done(self, output: np.ndarray, pair: Pair) -> float | None:
        """How much of the way from a pair's condition to its target an output, float32 (H, W, 3), has gone; 1: all.

        None where the task asks for no change of a picture.
        """
        return None

    def latest_score(self, metrics: Mapping[str, Any]) -> float | None:
        """The number that `latest` is decided by, from held-out metrics; higher is better."""
        value = metrics.get(self.score)
        return None if value is None else float(value)


def pixels(image: Image.Image | np.ndarray) -> np.ndarray:
    """An image as uint8 (H, W, 3). Arrays may be uint8, or float in [0, 1]. Raises InvalidInput for another form."""
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InvalidInput(f"an array of shape {image.shape} is no picture: give (H, W, 3)")
    return image if image.dtype == np.uint8 else to_uint8(image)


def needed(example: Mapping[str, Any], key: str, task: str) -> Any:
    """`example[key]`. Raises InvalidInput naming what the data has instead."""
    if example.get(key) is None:
        has = ", ".join(sorted(k for k, value in example.items() if value is not None)) or "nothing"
        raise InvalidInput(f"task {task} needs data with {key!r}; this has {has}")
    return example[key]


def _one_line(error: ValidationError, options: type[BaseModel]) -> str:
    problem = error.errors()[0]
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"no option {name!r}; it has {', '.join(options.model_fields) or 'none'}"
    message = problem["msg"].removeprefix("Value error, ")
    if not name:  # of a check that concerns several options
        return message
    return f"option {name!r}: {message[0].lower()}{message[1:]}, not {problem['input']!r}"
