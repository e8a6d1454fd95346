"""The task protocol: how a training pair is built, an input prepared, an output finished, an adapter evaluated."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args

import numpy as np
from PIL import Image
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from codi_hub.errors import InvalidInput, UsageError
from codi_hub.evaluation.metrics import Column
from codi_hub.images.filters import to_uint8
from codi_hub.images.formats import EXTENSIONS

if TYPE_CHECKING:
    from codi_hub.evaluation.context import EvaluationContext
    from codi_hub.evaluation.measured import Measured

FLAG = "flag"  # key of `json_schema_extra` of an option with a command-line flag; the value is its metavar, or ""


def _absolute(source: str) -> str:
    """Make the path of an existing file absolute, since a stored option outlives the working directory."""
    path = Path(source).expanduser()
    return os.path.abspath(path) if path.exists() else source


def _existing(path: Path) -> Path:
    if not os.path.exists(path):  # unlike Path.exists, never raises
        raise ValueError("no such file or folder")
    return path.absolute()


Location = Annotated[str, AfterValidator(_absolute)]  # a path, or another source such as a hub id
ExistingPath = Annotated[Path, AfterValidator(_existing)]


@dataclass(frozen=True)
class Pair:
    """A training pair of equal size: `target` uint8 (H, W, 3), `condition` uint8 (H, W, condition_channels)."""

    target: np.ndarray
    condition: np.ndarray
    prompt: str

    def prepared(self) -> Prepared:
        """Return the condition as an input ready for the networks."""
        return Prepared(self.condition, (self.condition.shape[1], self.condition.shape[0]))


@dataclass(frozen=True)
class Prepared:
    """An input ready for the networks.

    Attributes:
        values: the condition as stored, (H, W, condition_channels) of the output's size: uint8, or float32 in [0, 1]
            where 8 bits are too few. Large images fit into memory this way.
        size: (width, height) of the output.
        keep: what `finish` needs of the input beside the condition.
        opaque: `prepare` used the input's alpha channel; otherwise the output gets it.
        further: conditions of other tasks for the same output, which other adapters take.
    """

    values: np.ndarray
    size: tuple[int, int]
    keep: dict[str, Any] = field(default_factory=dict)
    opaque: bool = False
    further: tuple[Prepared, ...] = ()

    @property
    def condition(self) -> np.ndarray:
        """Return what the task's networks take: float32 (H, W, condition_channels) in [0, 1]."""
        return self.values if self.values.dtype == np.float32 else self.values.astype(np.float32) / 255

    @property
    def conditions(self) -> np.ndarray:
        """Return the channels of this condition and of all further ones: float32 (H, W, K) in [0, 1]."""
        own = self.condition
        return np.concatenate([own, *(one.condition for one in self.further)], axis=2) if self.further else own

    def with_further(self, further: Sequence[Prepared]) -> Prepared:
        """Return the same with conditions of other tasks. Raises InvalidInput for one of another size."""
        for one in further:
            if one.size != self.size:
                sizes = " and ".join(f"{width}x{height}" for width, height in (self.size, one.size))
                raise InvalidInput(f"the conditions of one image are of {sizes} pixels: give them one size")
        return replace(self, further=tuple(further))

    @property
    def bytes(self) -> np.ndarray:
        """Return the condition as uint8, rounded if necessary."""
        return self.values if self.values.dtype == np.uint8 else to_uint8(self.values)

    def window(self, rows: slice, columns: slice) -> Prepared:
        """Return a part of the input as an input of its own."""
        values = self.values[rows, columns]
        further = tuple(one.window(rows, columns) for one in self.further)
        return replace(self, values=values, size=(values.shape[1], values.shape[0]), further=further)


class Task:
    """One image task. A subclass is a file with everything that is particular to the task.

    `prepare`, `finish` and `load` are called from several threads at once.

    Attributes:
        name: of the entry point in the group `codi_hub.tasks`.
        summary: one line for lists.
        condition_channels: number of channels of a condition.
        data: synthetic data it trains on by default (see `codi_hub.data.open_source`); None: data must be given.
        uses_prompt: whether a prompt changes the output.
        needs_prompt: whether an input without a prompt is refused.
        reads_pairs: whether `make_pair` uses an example's own `condition`.
        reads_alpha: whether `prepare` gets an input's alpha channel as the fourth.
        lossless: whether outputs are saved as JPEG only on request.
        keeps_grey: whether the output of a grey image is saved as grey.
        input_extensions: file name extensions of inputs, with the dot, lower case.
        finishes_tiles: whether `finish` of a tile equals that tile of the finished image.
        training_size: side of training images, as a share of the base's native size.
        distill: defaults of `codi distill` that differ for this task.
        score: the held-out metric that decides which version is `latest`; higher is better.
        baselines: rows without an adapter that every table of this task has, such as "bicubic".
        compares_tools: whether `evaluate` gives other tools the same inputs; see `EvaluationContext.with_tools`.
        columns: descriptions of the columns that `evaluate` adds to the registered metrics.
        renamed: former names of options -> current names; both are read.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    condition_channels: ClassVar[int] = 3
    data: ClassVar[str | None]
    uses_prompt: ClassVar[bool] = False
    needs_prompt: ClassVar[bool] = False
    reads_pairs: ClassVar[bool] = True
    reads_alpha: ClassVar[bool] = False
    lossless: ClassVar[bool] = False
    keeps_grey: ClassVar[bool] = False
    input_extensions: ClassVar[frozenset[str]] = EXTENSIONS
    finishes_tiles: ClassVar[bool] = False
    training_size: ClassVar[float] = 1.0
    distill: ClassVar[dict[str, Any]] = {}
    score: ClassVar[str] = "psnr"
    baselines: ClassVar[tuple[str, ...]] = ()
    compares_tools: ClassVar[bool] = False
    columns: ClassVar[Mapping[str, Column]] = {}
    renamed: ClassVar[Mapping[str, str]] = {}

    class Options(BaseModel):
        """The options of a run and of a registered variant."""

        model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

        data: Location | None = None
        """Training data of its own: a folder, a file, a hub id or synthetic data."""

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        """Read the options, under current or former names; of both, the last one counts.

        Raises:
            UsageError: an option that does not exist, or a value that it cannot have.
        """
        try:
            self.options: Any = self.Options(**self.current_names(options or {}))
        except ValidationError as error:
            raise UsageError(f"task {self.name}: {_one_line(error, self.Options)}") from None

    @classmethod
    def current_names(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return options under their current names."""
        return {cls.renamed.get(name, name): value for name, value in options.items()}

    @classmethod
    def file_options(cls) -> frozenset[str]:
        """Return the options that name files or folders, which callers from elsewhere may not choose."""
        fields = cls.Options.model_fields.items()
        return frozenset(name for name, field in fields if _mentions(field.annotation, Path)) | {"data"}

    def recorded_options(self) -> dict[str, Any]:
        """Return the options that decide an output, for the record of a run.

        An option that was renamed keeps its former name there, so that runs of earlier versions can be resumed.
        """
        former = {current: old for old, current in self.renamed.items()}
        return {former.get(k, k): v for k, v in self.options.model_dump(mode="json", exclude={"data"}).items()}

    @property
    def training_data(self) -> str:
        """Return what it trains on by default, for `codi_hub.data.open_source`. Raises UsageError."""
        data = self.options.data or self.data
        if data is None:
            raise UsageError(
                f"task {self.name} has no data of its own: give training data, or register a variant of {self.name} "
                "with the option data"
            )
        return data

    @property
    def size_is_free(self) -> bool:
        """Whether its inputs may be resized before `prepare`, since the output is drawn anew in their shapes."""
        return False

    @property
    def whole_images(self) -> bool:
        """Return whether it trains on whole images, resized, instead of crops at full resolution."""
        return self.uses_prompt

    def make_pair(self, example: Mapping[str, Any], rng: np.random.Generator) -> Pair:
        """Return a training pair of an example of `codi_hub.data`.

        Args:
            example: `image` uint8 (H, W, 3) and, depending on the source, `depth` float32 (H, W), `caption`,
                `condition` uint8 (H, W, 3), `edited` uint8 (H, W, 3), `edit_prompt`.
            rng: the only source of randomness.

        Raises:
            InvalidInput: the example lacks a key.
        """
        raise TypeError(f"task {self.name} does not define make_pair")

    def prepare(
        self, image: Image.Image | np.ndarray, path: Path | None = None, rng: np.random.Generator | None = None
    ) -> Prepared:
        """Return an input ready for the networks; by default the image itself is the condition.

        Args:
            image: an image, or an array as `load` returns it.
            path: of the input, for tasks with files beside it.
            rng: the only source of randomness.

        Raises:
            InvalidInput: an input that the task cannot use.
        """
        condition = pixels(image)
        return Prepared(condition, (condition.shape[1], condition.shape[0]))

    def output_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the size of the output for an input of a size, (width, height) in pixels both."""
        return width, height

    def blank(self, width: int, height: int) -> Image.Image | None:
        """Return an input that says nothing, for an output made of the prompt alone; None: the task needs an image."""
        return None

    def finish(self, output: np.ndarray, prepared: Prepared) -> np.ndarray:
        """Convert an output of the networks, float32 (H, W, 3) in [0, 1], to the final image, uint8 (H, W, 3)."""
        return to_uint8(self.finish_values(output, prepared))

    def finish_values(self, output: np.ndarray, prepared: Prepared) -> np.ndarray:
        """Return the final image of `finish` before it is rounded to 8 bits: float, unclipped."""
        return output

    @property
    def finishes_values(self) -> bool:
        """Whether `finish_values` is what `finish` rounds, so that outputs can have 16 bits."""
        return type(self).finish is Task.finish

    def untouched(self, prepared: Prepared) -> bool:
        """Return whether the final image does not depend on the output, so that it need not be computed."""
        return False

    def is_sidecar(self, path: Path) -> bool:
        """Return whether the file belongs to another input and is not an input itself."""
        return False

    def companions(self, path: Path) -> Sequence[Path]:
        """Return the other files that decide the output of the input at `path`; a change in one makes it anew."""
        return ()

    def load(self, path: Path) -> Image.Image | np.ndarray:
        """Open the input at `path`: an image as stored, or an array that `prepare` accepts."""
        return Image.open(path)

    def adherence(self, output: np.ndarray, condition: np.ndarray) -> float | None:
        """Return how well an output, float32 (H, W, 3) in [0, 1], follows its condition; higher is better.

        It needs no target. None where it is not defined.
        """
        return None

    def done(self, output: np.ndarray, pair: Pair) -> float | None:
        """Return the share of the change from a pair's condition to its target that an output, float32 (H, W, 3), has.

        1 for all of it. None for tasks that do not change an image.
        """
        return None

    def evaluate(self, context: EvaluationContext) -> Measured:
        """Measure an adapter; by default on held-out pairs (`codi_hub.evaluation.pairs`).

        An override generates images with `context.sample`, collects them in a `Comparison`, and describes columns of
        its own in `columns`. Registered metrics are added by the comparison.

        Raises:
            CodiError: data that cannot be used.
        """
        from codi_hub.evaluation.pairs import evaluate_pairs

        return evaluate_pairs(self, context)

    def latest_score(self, metrics: Mapping[str, Any]) -> float | None:
        """Return the number that decides which version is `latest`, from held-out metrics; higher is better."""
        value = metrics.get(self.score)
        return None if value is None else float(value)


def _mentions(annotation: Any, kind: type) -> bool:
    """Return whether a type, or one of those that it is composed of, is `kind`."""
    return annotation is kind or any(_mentions(part, kind) for part in get_args(annotation))


def pixels(image: Image.Image | np.ndarray) -> np.ndarray:
    """Convert an image, or an array uint8 or float in [0, 1], to uint8 (H, W, 3). Raises InvalidInput."""
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InvalidInput(f"an array of shape {image.shape} is not an image: give (H, W, 3)")
    return image if image.dtype == np.uint8 else to_uint8(image)


def needed(example: Mapping[str, Any], key: str, task: str) -> Any:
    """Return `example[key]`. Raises InvalidInput with the keys that the data has."""
    if example.get(key) is None:
        has = ", ".join(sorted(k for k, value in example.items() if value is not None)) or "nothing"
        raise InvalidInput(f"task {task} needs data with {key!r}; this has {has}")
    return example[key]


def _one_line(error: ValidationError, options: type[BaseModel]) -> str:
    """Describe the first problem."""
    problem = error.errors()[0]
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"no option {name!r}; it has {', '.join(options.model_fields) or 'none'}"
    message = problem["msg"].removeprefix("Value error, ")
    if not name:  # a check of several options
        return message
    return f"option {name!r}: {message[0].lower()}{message[1:]}, not {problem['input']!r}"
