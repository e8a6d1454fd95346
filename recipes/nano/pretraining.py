"""Pretraining on scene labels: the network of edit, depth and canny is first trained to recognise and locate objects.

From its task alone it changes tints long before it finds an object: an edited object is a hundredth of the image, and
its loss says next to nothing of the other objects. Here the network is trained, at every location of an image, to
classify shape and colour of the object there, and to mark the object that an instruction names; given a depth map or
edges and a caption, the same classification tells which words belong where. The two heads are discarded. At the same
time the network is trained to predict its residual, as if the base left the image unchanged: without evaluating the
base, a step costs half as much.
"""

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codi_hub import adapters, tasks
from codi_hub.adapters import format
from codi_hub.adapters.adapter import Adapter
from codi_hub.backbones import load
from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.values import Prompt
from codi_hub.data.synthetic.edits import Edit, scene_edit
from codi_hub.data.synthetic.raycast import solid_map
from codi_hub.data.synthetic.scenes_words import COLOURS
from codi_hub.losses.guidance import LEAST_CHANGE
from codi_hub.record import TrainingRecord
from codi_hub.registry import Registry
from recipes.nano import bundle
from recipes.nano.kernels import precision, training_precision
from recipes.nano.muon import Muon
from recipes.nano.stage import train

COUNTS = {64: 20_000, 128: 25_000}  # edits of scenes, by the side of their images in px
# of edits whose result the instruction determines: it does not say where a new object should lie
SHARES = {"recolour": 0.42, "remove": 0.32, "time": 0.26}
CHUNK = 200
CELLS = 12 * 32 * 32  # latent cells in a batch
HELD_OUT = 256  # edits of each size, the first ones, that training never sees
FORM = {"levels": 3, "blocks": 2, "read": True, "start_noise": 0.0}
SHAPES, NAMES = ("sphere", "box", "cone", "cylinder"), tuple(COLOURS)
CLASSES = 1 + len(SHAPES) * len(NAMES)  # 0 is no object
FINE = 2  # locations that the heads predict, along each side of a latent cell
METHOD = "regression (scene labels)"
WEIGHTS = {"labels": 1.0, "pointing": 2.0, "painting": 2.0}
CARD = "Pretrained on scene labels, without the base: the start of another training, not an adapter to use.\n"
DECAY = 0.8  # share of a phase in which the learning rate falls: at its height, much of the error is its noise
MORE = 4  # weight of locations of objects beyond that of others
MIRRORED = {"left": "right", "right": "left"}  # words of a prompt that a mirror exchanges
SIDE = re.compile(r"\b(left|right)\b")


def run_name(task: str) -> str:
    """Return the name of a task's pretraining in run folders."""
    return f"pretraining-{task}"


def labelled(name: str, count: int, size: int, seed: int, first: int = 0) -> dict[str, np.ndarray]:
    """Render pairs of a task from scenes and their edited twins, with labels.

    Returns:
        `condition` uint8 (count, size, size, C), `target` uint8 (count, size, size, 3), `prompt`; `labels`, the classes
        of what is visible, and `marked`, the mask of the object that an instruction names: uint8 and bool (count,
        size / 2, size / 2); `removes`, bool (count,), whether that object is to be removed.
    """
    task, rows = tasks.load(name), list[dict[str, Any]]()
    for number in range(first, first + count):
        rng = np.random.default_rng([seed, number])
        edit = scene_edit(rng, size, SHARES)
        pair = task.make_pair(edit.example | {"depth": edit.before.depth}, rng)
        visible = solid_map(edit.setting.world, size // 2)
        rows.append(
            {
                "condition": pair.condition,
                "target": pair.target,
                "prompt": pair.prompt,
                "labels": np.array([*_classes(edit), 0], np.uint8)[np.maximum(visible, -1)],
                "marked": visible == _named(edit) if name == "edit" else np.zeros_like(visible, bool),
                "removes": name == "edit" and edit.kind == "remove",
            }
        )
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


def _classes(edit: Edit) -> list[int]:
    """Return the class of each object, in the order of `solid_map`."""
    solids = edit.setting.world.solids
    return [1 + SHAPES.index(solid.shape) * len(NAMES) + NAMES.index(solid.words[1]) for solid in solids]


def _named(edit: Edit) -> int:
    """Return the index, in `solid_map`, of the object that an instruction names; one that is not visible if none."""
    solids = edit.setting.world.solids
    return solids.index(edit.solid) if edit.solid and edit.kind != "add" else len(solids)


class Learner(nn.Module):
    """A residual network with two heads on its last features."""

    def __init__(self, adapter: Adapter):
        super().__init__()
        self.adapter = adapter
        width = adapter.out.in_channels  # type: ignore[union-attr]
        self.classes = nn.Conv2d(width, CLASSES * FINE**2, 1)
        self.pointed = nn.Conv2d(width, FINE**2, 1)

    def forward(self, base: Backbone, condition: Tensor, prompt: Prompt) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits of the classes and of the named object, and the residual of the prediction.

        Args:
            base: the frozen base.
            condition: (B, C, H, W) in [0, 1].
            prompt: embedded prompts of B rows.

        Returns:
            (B, CLASSES, 2 h, 2 w), (B, 2 h, 2 w), and (B, C, h, w).
        """
        features: list[Tensor] = []
        hook = self.adapter.last.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))  # type: ignore[union-attr]
        _, added = self.adapter.prepare(base, condition, prompt)
        hook.remove()
        classes, pointed = (F.pixel_shuffle(head(features[0]), FINE) for head in (self.classes, self.pointed))
        return classes.float(), pointed[:, 0].float(), added.float()


@dataclass(frozen=True)
class Phase:
    """A part of a pretraining.

    Attributes:
        minutes: on two cores.
        sizes: sides of the images in px, which alternate from step to step.
        lr: learning rate.
        removals: share of the pairs from which an object is removed; None for their natural share. The content behind
            an object is learned long after its location.
    """

    minutes: float
    sizes: Sequence[int] = (64, 128)
    lr: float = 3e-3
    removals: float | None = None


@dataclass(frozen=True)
class Pretraining:
    """The pretraining of a task's network.

    Attributes:
        start: where sampling starts. The base changes the image from there, which the network must undo: at 0.2 by as
            much as an edit does, at 0.05 by half of it.
        phases: one after the other.
    """

    start: float
    phases: Sequence[Phase]

    @property
    def minutes(self) -> float:
        """Minutes of all phases."""
        return sum(one.minutes for one in self.phases)


def run(
    workspace: Path,
    name: str,
    pretraining: Pretraining,
    times: float,
    device: str = "cpu",
    counts: Mapping[int, int] = COUNTS,
) -> None:
    """Train in phases, each `times` its minutes, and register the network as an adapter that others start from.

    `counts` is the number of edits by the side of their images in px.
    """
    base = load(str(workspace / "base"), device=device)
    torch.manual_seed(0)
    form = FORM | {"start": pretraining.start, "condition_channels": tasks.load(name).condition_channels}
    model = Learner(adapters.build("residual", base, **form)).to(device, memory_format=torch.channels_last)
    top = torch.tensor(base.schedule.grid(1, pretraining.start), device=base.device)
    sigma = float(base.schedule.at(top, torch.zeros(1))[1])
    sizes = sorted({size for one in pretraining.phases for size in one.sizes})
    data = {size: _encoded(workspace, name, base, (size, counts[size]), top) for size in sizes}

    def losses(network: Learner, size: int, rows: np.ndarray | slice) -> dict[str, Tensor]:
        one = data[size]
        x, source, alone, labels, marked = (
            one[key][rows].to(device) for key in ("x", "source", "alone", "labels", "marked")
        )
        condition = one["condition"][rows].to(device, memory_format=torch.channels_last).float() / 255
        prompt = _prompt(one, rows).to(device)
        with training_precision(device):
            classes, pointed, added = network(base, condition, prompt)
        painting = relative_error(x.float(), alone.float() - sigma * added, source.float())
        terms = label_losses(classes, pointed, labels.long(), marked.float()) | {"painting": painting}
        return {term: WEIGHTS[term] * value for term, value in terms.items()}

    def loss_of(phase: Phase, network: Learner, number: int) -> dict[str, Tensor]:
        size = phase.sizes[number % len(phase.sizes)]
        count = CELLS // (size // base.latents.factor) ** 2
        return losses(network, size, sample_rows(data[size]["removes"].numpy(), count, phase.removals, number))

    for number, one in enumerate(pretraining.phases, 1):
        folder, minutes = workspace / run_name(name) / str(number), times * one.minutes
        loss = partial(loss_of, one)
        kept = train(folder, model, loss, minutes=minutes, lr=one.lr, optimizer=Muon, ema_decay=0.998, fall=DECAY)
        model.load_state_dict(kept)
    metrics: dict[str, float] = {}
    with torch.no_grad():
        model.eval()
        for size in sizes:
            held_out = losses(model, size, slice(0, 2 * HELD_OUT))
            metrics |= {f"{term}, {size} px": round(value.item(), 4) for term, value in held_out.items()}
    print(metrics)
    _register(workspace, name, base, model.adapter, metrics, _lineage(name, pretraining, times, device, counts))


@torch.no_grad()
def base_alone(base: Backbone, data: dict[str, Tensor], top: Tensor) -> Tensor:
    """Return the latents that the base alone reaches in one step from the initial latents, with the same prompt."""
    answers = list[Tensor]()
    for rows in torch.arange(len(data["x"])).split(64):
        source, t = data["source"][rows].to(base.device).float(), top.expand(len(rows))
        z_t = base.schedule.add_noise(source, torch.zeros_like(source), t)
        predict = partial(base.predict, prompt=_prompt(data, rows).to(base.device))
        with training_precision(base.device.type):
            answers.append(base.schedule.denoiser(predict)(z_t, t)[0].half().cpu())
    return torch.cat(answers)


def _prompt(data: dict[str, Tensor], rows: Any) -> Prompt:
    return Prompt({"context": data["prompt"][data["prompt_of"][rows]]})


def sample_rows(removes: np.ndarray, count: int, share: float | None, number: int) -> np.ndarray:
    """Return the rows of a batch, none of them held out."""
    rng, first = np.random.default_rng([81, number]), 2 * HELD_OUT
    if share is None:
        return rng.integers(first, len(removes), count)
    removals = first + np.flatnonzero(removes[first:])
    others = first + np.flatnonzero(~removes[first:])
    many = rng.binomial(count, share)
    return np.concatenate([rng.choice(removals, many), rng.choice(others, count - many)])


def label_losses(classes: Tensor, pointed: Tensor, labels: Tensor, marked: Tensor) -> dict[str, Tensor]:
    """Return the unweighted losses of the two heads.

    Args:
        classes, pointed: logits, (B, CLASSES, h, w) and (B, h, w).
        labels, marked: int64 classes and the float mask of the named object, (B, h, w).

    Returns:
        `labels`: cross-entropy, larger where objects are. `pointing`: cross-entropy + half of the Dice loss; absent
        where no object is named.
    """
    weighted = (F.cross_entropy(classes, labels, reduction="none") * (1 + MORE * (labels > 0))).mean()
    if not marked.any():
        return {"labels": weighted}
    share, apart = pointed.sigmoid(), (1, 2)
    dice = 1 - (2 * (share * marked).sum(apart) + 1) / ((share + marked).sum(apart) + 1)
    entropy = F.binary_cross_entropy_with_logits(pointed, marked, pos_weight=pointed.new_tensor(3.0))
    return {"labels": weighted, "pointing": entropy + dice.mean() / 2}


def relative_error(x: Tensor, x_hat: Tensor, source: Tensor) -> Tensor:
    """Return the loss of guidance `relative`, from latents (B, C, h, w) of the condition that are known already."""
    each = (1, 2, 3)
    change = (x - source).square().mean(each) + LEAST_CHANGE
    return ((x_hat - x).square().mean(each) / change).mean()


def mirrored(rows: np.ndarray) -> np.ndarray:
    """Return images (N, H, W, ...), texts (N,) or flags (N,), each followed by its mirror image."""
    other = rows[:, :, ::-1] if rows.ndim > 1 else rows
    if rows.dtype.kind == "U":
        other = np.array([SIDE.sub(lambda word: MIRRORED[word[0]], text) for text in rows])
    return np.stack([rows, other], 1).reshape(-1, *rows.shape[1:])


@torch.no_grad()
def _encoded(workspace: Path, name: str, base: Backbone, of: tuple[int, int], top: Tensor) -> dict[str, Tensor]:
    """Return conditions, prompts, labels and latents of all pairs and their mirror images; computed once, then read.

    Latents are those of the condition (`source`), those the base alone reaches from there (`alone`), and the target's
    (`x`).
    """
    size, count = of
    path = workspace / "images" / f"{run_name(name)}-{size}.pt"
    if path.exists():
        return dict(torch.load(path, weights_only=True))
    with ProcessPoolExecutor() as executor:
        starts = range(0, count, CHUNK)
        parts = list(executor.map(partial(labelled, name, CHUNK, size, 5), starts))
    pairs = {key: mirrored(np.concatenate([part[key] for part in parts])) for key in parts[0]}

    def latents(images: Tensor) -> Tensor:
        pieces = (piece.to(base.device).float() / 255 for piece in images.split(64))
        return torch.cat([base.encode_condition(piece).half().cpu() for piece in pieces])

    texts, places = np.unique(pairs["prompt"], return_inverse=True)
    prompt = base.embed(texts.tolist())["context"].cpu()
    condition, target = (torch.from_numpy(pairs[key]).permute(0, 3, 1, 2) for key in ("condition", "target"))
    data = {
        "condition": condition,
        "prompt": prompt,
        "prompt_of": torch.from_numpy(places),
        "source": latents(condition),
        "x": latents(target),
        "labels": torch.from_numpy(pairs["labels"]),
        "marked": torch.from_numpy(pairs["marked"]),
        "removes": torch.from_numpy(pairs["removes"]),
    }
    data["alone"] = base_alone(base, data, top)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(data, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)
    return data


def _lineage(
    name: str, pretraining: Pretraining, times: float, device: str, counts: Mapping[int, int]
) -> list[TrainingRecord]:
    """Return a record for each phase."""
    records = []
    for number, one in enumerate(pretraining.phases):
        numbers = " and ".join(f"{counts[size]} of {size} px" for size in one.sizes)
        data = f"edited scenes, {numbers}, and their mirror images"
        if one.removals is not None:
            data += f", {one.removals:.0%} of a batch removals"
        records.append(
            TrainingRecord(
                method=METHOD,
                data=data,
                minutes=round(times * one.minutes, 2),
                start="from the training before" if number else "random initialisation",
                task=name,
                kind="residual",
                hardware=f"{torch.get_num_threads()} threads, {precision(device)}",
            )
        )
    return records


def _register(
    workspace: Path,
    name: str,
    base: Backbone,
    adapter: nn.Module,
    metrics: dict[str, float],
    lineage: list[TrainingRecord],
) -> None:
    run_folder = bundle.run_folder(workspace, run_name(name), 1)
    folder = run_folder / "adapter"
    mark = base.fingerprint
    record = format.AdapterRecord(
        task=name,
        kind="residual",
        base=format.BaseRecord(name=bundle.base_name(workspace), family=mark.family, sketch=mark.sketch),
        prediction_type=base.schedule.prediction_type,
        steps=1,
        config=adapter.config,  # type: ignore[arg-type]
        method="regression",
        loss=WEIGHTS,
        lineage=lineage,
        metrics=metrics,
    )
    format.write(folder, adapter, record, CARD)
    count = sum(value.numel() for value in adapter.parameters())
    with Registry.open(workspace / "home") as registry:
        row, _ = registry.adapters.add(
            folder,
            task=name,
            base=bundle.base_name(workspace),
            kind="residual",
            steps=1,
            parameters=count,
            metrics=metrics,
        )
    (run_folder / bundle.DONE).write_text(row.ref)
