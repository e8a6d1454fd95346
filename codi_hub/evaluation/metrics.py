"""Metrics: named functions, each registered with a description of its column. No torch at import.

The table, its legend and the plot know a metric from its registration alone. Built in are `psnr`, `ssim` and `gmsd`,
per image, and `features`: the Frechet and the perceptual distance in the features of a network. Another package adds
a metric without any change here, as an entry point of the group `codi_hub.metrics`:

    # toy.py
    from codi_hub.evaluation.metrics import image_metric

    @image_metric(head="MAE", meaning="mean absolute error, levels of 255", better="lower", decimals=2)
    def mae(image, reference):  # uint8 (H, W, 3) each
        return float(abs(image.astype(float) - reference).mean())

    # pyproject.toml
    [project.entry-points."codi_hub.metrics"]
    mae = "toy:mae"

From then on `codi eval` has the column `mae` for every task with reference images, and the name of the entry point is
the name of the column in its JSON. A metric of sets of images, such as a Frechet distance, is a `SetMetric`. One that
needs weights, and is measured only where `EvalOptions.metrics` names it, is a `WeightMetric`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from codi_hub.errors import UsageError
from codi_hub.images import metrics as formulas
from codi_hub.plugins import Plugins

if TYPE_CHECKING:
    from codi_hub.evaluation.features import Features


class Column(NamedTuple):
    """The description of a column.

    Attributes:
        head: heading in tables.
        decimals: number of decimals.
        better: "higher", "lower" or, for a value with an optimum, such as "nearer 1".
        meaning: one line for the legend.
        plotted: whether the column gets a chart of quality against steps.
    """

    head: str
    decimals: int
    better: str
    meaning: str
    plotted: bool = True


@dataclass(frozen=True)
class ImageMetric:
    """A metric of one image, uint8 (H, W, 3), against its reference of the same shape."""

    column: Column
    compare: Callable[[np.ndarray, np.ndarray], float]

    def __call__(self, image: np.ndarray, reference: np.ndarray) -> float:
        """Return the value of one image."""
        return self.compare(image, reference)


def image_metric(
    *, head: str, meaning: str, better: str, decimals: int = 3, plotted: bool = True
) -> Callable[[Callable[[np.ndarray, np.ndarray], float]], ImageMetric]:
    """Describe a function (image, reference) -> float as an `ImageMetric`; the arguments are those of `Column`."""
    return lambda compare: ImageMetric(Column(head, decimals, better, meaning, plotted), compare)


@dataclass(frozen=True)
class SetScores:
    """The result of a `SetMetric`.

    Attributes:
        values: method -> column -> value.
        details: further entries of eval.json.
        notes: lines printed below the table.
    """

    values: Mapping[str, Mapping[str, float | None]]
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SetMetric:
    """A metric of all images of a method against all references.

    Attributes:
        columns: by name.
        compare: (method -> its images, references, feature network or None) -> scores, or None if it cannot compute.
    """

    columns: Mapping[str, Column]
    compare: Callable[[Mapping[str, Sequence[np.ndarray]], Sequence[np.ndarray], Features | None], SetScores | None]


class ImageSets(NamedTuple):
    """What a `WeightMetric` measures.

    Attributes:
        outputs: method -> its images, uint8 (H, W, 3).
        references: the reference of each output; the same object where it is the same image.
        prompts: of each output; empty where the task has none.
    """

    outputs: Mapping[str, Sequence[np.ndarray]]
    references: Sequence[np.ndarray]
    prompts: Sequence[str] = ()

    @property
    def distinct_references(self) -> list[np.ndarray]:
        """Return every reference once."""
        return list({id(reference): reference for reference in self.references}.values())


Compare = Callable[[ImageSets], SetScores | None]


@dataclass(frozen=True)
class WeightMetric:
    """A metric that needs weights, and is measured where `EvalOptions.metrics` names it.

    Attributes:
        columns: by name.
        load: (weight file or None for those of an installed package, device) -> comparison, which returns None if it
            cannot compute. Raises CodiError for weights that cannot be used.
    """

    columns: Mapping[str, Column]
    load: Callable[[Path | None, Any], Compare]


psnr = ImageMetric(
    Column("PSNR dB", 2, "higher", "peak signal-to-noise ratio against the reference image, dB"), formulas.psnr
)
ssim = ImageMetric(
    Column("SSIM", 4, "higher", "structural similarity to the reference image, at most 1"), formulas.ssim
)
gmsd = ImageMetric(
    Column("GMSD", 4, "lower", "gradient magnitude similarity deviation from the reference image"), formulas.gmsd
)


def _feature_distances(
    outputs: Mapping[str, Sequence[np.ndarray]], references: Sequence[np.ndarray], features: Features | None
) -> SetScores | None:
    if features is None:
        return None
    from codi_hub.evaluation.distances import PATCH, compare

    distances = compare(features, outputs, references)
    own, reference = next(iter(distances.values())).samples
    return SetScores(
        {
            name: {"frechet": one.frechet, "perceptual": float(np.mean(one.perceptual))}
            for name, one in distances.items()
        },
        {
            "features": features.name,
            "frechet_samples": {"outputs": own, "references": reference, "patch": PATCH},
            "perceptual": {name: one.perceptual for name, one in distances.items()},
        },
        (f"Frechet: {own} patches of {PATCH} px against {reference} of the references; features: {features.name}",),
    )


features = SetMetric(
    {
        "frechet": Column(
            "Frechet",
            3,
            "lower",
            "Frechet distance between all 64 px patches of the outputs and of the references, in the features of a "
            "network; patches, so that a few photographs give enough samples; not an FID",
        ),
        "perceptual": Column(
            "perceptual",
            4,
            "lower",
            "distance between the feature maps of output and reference, same network and patches; not LPIPS",
        ),
    },
    _feature_distances,
)

_WEIGHTED = ("lpips", "st-lpips", "dists", "frechet-imagenet", "fid", "cmmd", "clip-i", "clip-t", "dino", "niqe")
METRICS = Plugins(
    "metric",
    "codi_hub.metrics",
    {name: f"codi_hub.evaluation.metrics:{name}" for name in ("psnr", "ssim", "gmsd", "features")}
    | {name: f"codi_hub.evaluation.learned.registered:{name.replace('-', '_')}" for name in _WEIGHTED},
)
# Columns that any task may have.
COMMON = {
    "adherence": Column("adherence", 3, "higher", "agreement with the condition, by a measure of the task"),
    "shuffled": Column("shuffled", 3, "lower", "the same against the condition of another image", plotted=False),
    "done": Column("done", 3, "higher", "share of the requested change that is done: 1 all, 0 nothing"),
    "seconds": Column("s/image", 3, "lower", "time per image, s", plotted=False),
}


def registered() -> dict[str, ImageMetric | SetMetric | WeightMetric]:
    """Return every installed metric by name.

    Raises:
        UsageError: an entry point that is no `ImageMetric`, `SetMetric` or `WeightMetric`.
    """
    metrics = dict(METRICS.loadable())
    for name, metric in metrics.items():
        if not isinstance(metric, ImageMetric | SetMetric | WeightMetric):
            raise UsageError(f"metric {name!r} is a {type(metric).__name__}: decorate the function with image_metric")
    return metrics


def columns() -> dict[str, Column]:
    """Return the columns of every installed metric, then those that any task may have."""
    described: dict[str, Column] = {}
    for name, metric in registered().items():
        described |= {name: metric.column} if isinstance(metric, ImageMetric) else metric.columns
    return described | COMMON


def image_metrics() -> dict[str, ImageMetric]:
    """Return the installed per-image metrics by name. Takes milliseconds: keep the result while measuring images."""
    return {name: metric for name, metric in registered().items() if isinstance(metric, ImageMetric)}


def set_metrics() -> list[SetMetric]:
    """Return the installed metrics of sets of images."""
    return [metric for metric in registered().values() if isinstance(metric, SetMetric)]


def requested(names: Sequence[str], device: Any) -> list[tuple[WeightMetric, Compare]]:
    """Load the metrics that are named, each as NAME or NAME=WEIGHTS.

    Raises:
        UsageError: a name that is none of a `WeightMetric`, or one without the weights it needs.
        CodiError: weights that cannot be used.
    """
    available = {name: metric for name, metric in registered().items() if isinstance(metric, WeightMetric)}
    loaded = []
    for text in dict.fromkeys(names):
        name, equals, path = text.partition("=")
        if name not in available:
            raise UsageError(f"metrics {text}: one of {', '.join(available)}, as NAME or NAME=WEIGHTS")
        if equals and not path:
            raise UsageError(f"metrics {text}: the path of the weights is missing after =")
        loaded.append((available[name], available[name].load(Path(path).expanduser() if path else None, device)))
    return loaded
