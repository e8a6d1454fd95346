"""What an adapter that is told about things learns first: to see, to point at what is named, and to paint.

From its task alone it tints pictures long before it finds a thing: an edited thing is a hundredth of the picture, and
says next to nothing of all the others in it. Here every place is asked which shape and colour lies there, and whether
it belongs to the thing that an instruction names; given a depth map and a caption, the same question is which words go
where. The heads that answer are thrown away. What the network would add to the base's prediction is taught at the same
time, as if the base left the picture as it is: without the base in between, a step costs half as much.
"""

import re
from collections.abc import Sequence
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
from codi_hub.adapters import Adapter, format
from codi_hub.adapters.adapter import as_picture
from codi_hub.backbones.unet import FrozenBase
from codi_hub.data.synthetic.edits import Edit, scene_edit
from codi_hub.data.synthetic.raycast import solid_map
from codi_hub.data.synthetic.scenes_words import COLOURS
from codi_hub.evaluation.prompt_only import PromptOnly
from codi_hub.losses.guidance import relative_l2
from codi_hub.registry import Registry
from codi_hub.training.muon import Muon
from recipes.nano import bundle
from recipes.nano.stage import train

OPPOSITE = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
SIDE = re.compile(rf"\b({'|'.join(OPPOSITE)})\b")
COUNTS = {64: 20_000, 128: 25_000}  # edits of scenes, by the side of their pictures in px
# of what can be answered: where a new thing should lie, no instruction says
SHARES = {"recolour": 0.42, "remove": 0.32, "time": 0.26}
CHUNK = 200
CELLS = 12 * 32 * 32  # of a latent, in a batch
HELD_OUT = 256  # edits of each size, the first ones, which training never sees
FORM = {"levels": 3, "blocks": 2, "read": True, "start_noise": 0.0}
SHAPES, NAMES = ("sphere", "box", "cone", "cylinder"), tuple(COLOURS)
CLASSES = 1 + len(SHAPES) * len(NAMES)  # 0 is no thing
FINE = 2  # places that the heads ask for, along each side of a latent's cell
CARD = "It has learnt to see what it is told about, and what to paint, without the base.\n"
FALL = 0.8  # share of a pass in which the learning rate falls: at its height, much of the error is its noise
MORE = 4  # weight of places of things beyond that of others


def labelled(name: str, count: int, size: int, seed: int, first: int = 0) -> dict[str, np.ndarray]:
    """Pairs of a task, made of scenes and their edited twins, and what is seen in them.

    Returns:
        `condition` uint8 (count, size, size, C), `target` uint8 (count, size, size, 3), `prompt`; `labels`, the classes
        of what is seen, and `marked`, where the thing lies that an instruction names: uint8 and bool (count, size / 2,
        size / 2); `removes`, bool (count,), whether it is to be taken away.
    """
    task, rows = tasks.load(name), list[dict[str, Any]]()
    for number in range(first, first + count):
        rng = np.random.default_rng([seed, number])
        edit = scene_edit(rng, size, SHARES)
        pair = task.make_pair(edit.example | {"depth": edit.before.depth}, rng)
        seen = solid_map(edit.setting.world, size // 2)
        rows.append(
            {
                "condition": pair.condition,
                "target": pair.target,
                "prompt": pair.prompt,
                "labels": np.array([*_classes(edit), 0], np.uint8)[np.maximum(seen, -1)],
                "marked": seen == _named(edit) if name == "edit" else np.zeros_like(seen, bool),
                "removes": name == "edit" and edit.kind == "remove",
            }
        )
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


def _classes(edit: Edit) -> list[int]:
    """Of the things, in the order of `solid_map`."""
    things = edit.setting.world.solids
    return [1 + SHAPES.index(thing.shape) * len(NAMES) + NAMES.index(thing.words[1]) for thing in things]


def _named(edit: Edit) -> int:
    """The number, in `solid_map`, of the thing that an instruction names; one that is never seen if it names none."""
    things = edit.setting.world.solids
    return things.index(edit.solid) if edit.solid and edit.kind != "add" else len(things)


class Learner(nn.Module):
    """A side network with two heads on what it knows before it decides what to add."""

    def __init__(self, adapter: Adapter):
        super().__init__()
        self.adapter = adapter
        width = adapter.out.in_channels  # type: ignore[union-attr]
        self.classes = nn.Conv2d(width, CLASSES * FINE**2, 1)
        self.pointed = nn.Conv2d(width, FINE**2, 1)

    def forward(self, condition: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, H, W) -> logits of the classes (B, CLASSES, 2 h, 2 w) and of what is named (B, 2 h, 2 w), and
        what is added to the prediction (B, C, h, w).
        """
        known: list[Tensor] = []
        hook = self.adapter.last.register_forward_pre_hook(lambda _, given: known.append(given[0]))  # type: ignore[union-attr]
        _, added = self.adapter.prepare(condition, prompt)
        hook.remove()
        classes, pointed = (F.pixel_shuffle(head(known[0]), FINE) for head in (self.classes, self.pointed))
        return classes.float(), pointed[:, 0].float(), added.float()


@dataclass(frozen=True)
class Pass:
    """A part of the training: minutes on two cores, the sides of the pictures, which take turns, and the rate.

    Attributes:
        removals: share of the pairs from which a thing is taken away; None for as many as there are. What a thing hid
            is learnt long after where it is.
    """

    minutes: float
    sizes: Sequence[int] = (64, 128)
    lr: float = 3e-3
    removals: float | None = None


@dataclass(frozen=True)
class Sight:
    """How a task's side network is taught.

    Attributes:
        start: where the adapter begins. What the base makes of the picture there is to be taken back: at 0.2 that is
            as much as an edit changes, at 0.05 half of it.
        passes: one after the other.
    """

    start: float
    passes: Sequence[Pass]

    @property
    def minutes(self) -> float:
        return sum(one.minutes for one in self.passes)


def run(workspace: Path, name: str, sight: Sight, times: float, device: str = "cpu") -> None:
    """Trains in passes, `times` as long as they say, and registers it as an adapter that others go on from."""
    base = FrozenBase.load(str(workspace / "base"), device=torch.device(device))
    torch.manual_seed(0)
    form = FORM | {"start": sight.start, "condition_channels": tasks.load(name).condition_channels}
    model = Learner(adapters.build("side", base, **form)).to(device, memory_format=torch.channels_last)
    top = torch.tensor([model.adapter.horizon(len(base.schedule)) - 1], device=base.device)
    sigma = float(base.schedule.at(top, torch.zeros(1))[1])
    sizes = sorted({size for one in sight.passes for size in one.sizes})
    data = {size: _encoded(workspace, name, base, size, top) for size in sizes}

    def losses(network: Learner, size: int, rows: np.ndarray | slice) -> dict[str, Tensor]:
        one = data[size]
        x, source, alone, labels, marked = (
            one[key][rows].to(device) for key in ("x", "source", "alone", "labels", "marked")
        )
        condition = one["condition"][rows].to(device, memory_format=torch.channels_last).float() / 255
        prompt = one["prompt"][one["prompt_of"][rows]].to(device)
        with torch.autocast(device, torch.bfloat16):
            classes, pointed, added = network(condition, prompt)
        painted = relative_l2(x.float(), alone.float() - sigma * added, source.float())
        return answered(classes, pointed, labels.long(), marked.float()) | {"painted": 2 * painted}

    def loss_of(drawn: Pass, network: Learner, number: int) -> dict[str, Tensor]:
        size = drawn.sizes[number % len(drawn.sizes)]
        count = CELLS // (size // base.factor) ** 2
        return losses(network, size, _rows(data[size]["removes"].numpy(), count, drawn.removals, number))

    for number, one in enumerate(sight.passes, 1):
        folder, minutes = workspace / f"sight-{name}" / str(number), times * one.minutes
        loss = partial(loss_of, one)
        kept = train(folder, model, loss, minutes=minutes, lr=one.lr, optimizer=Muon, ema_decay=0.998, fall=FALL)
        model.load_state_dict(kept)
    metrics: dict[str, float] = {}
    with torch.no_grad():
        model.eval()
        for size in sizes:
            held_out = losses(model, size, slice(0, 2 * HELD_OUT))
            metrics |= {f"{term}, {size} px": round(value.item(), 4) for term, value in held_out.items()}
    print(metrics)
    _register(workspace, name, base, model.adapter, times * sight.minutes, metrics)


@torch.no_grad()
def _alone(base: FrozenBase, data: dict[str, Tensor], top: Tensor) -> Tensor:
    """The latents that the base arrives at in one step from the first one, told what the adapter is told."""
    answers = list[Tensor]()
    for rows in torch.arange(len(data["x"])).split(64):
        source, t = data["source"][rows].to(base.device).float(), top.expand(len(rows))
        z_t = base.schedule.add_noise(source, torch.zeros_like(source), t)
        prompt = data["prompt"][data["prompt_of"][rows]].to(base.device)
        denoise = base.schedule.denoiser(partial(PromptOnly().predict, base, prompt=prompt, prepared=z_t))
        with torch.autocast(base.device.type, torch.bfloat16):
            answers.append(denoise(z_t, t)[0].half().cpu())
    return torch.cat(answers)


def _rows(removes: np.ndarray, count: int, share: float | None, number: int) -> np.ndarray:
    """Which pairs, of those not held out, a batch is made of."""
    rng, first = np.random.default_rng([81, number]), 2 * HELD_OUT
    if share is None:
        return rng.integers(first, len(removes), count)
    gone = first + np.flatnonzero(removes[first:])
    others = first + np.flatnonzero(~removes[first:])
    many = rng.binomial(count, share)
    return np.concatenate([rng.choice(gone, many), rng.choice(others, count - many)])


def answered(classes: Tensor, pointed: Tensor, labels: Tensor, marked: Tensor) -> dict[str, Tensor]:
    """Cross-entropy of the classes, things counting more; cross-entropy and Dice loss of what is pointed at, if any."""
    seen = (F.cross_entropy(classes, labels, reduction="none") * (1 + MORE * (labels > 0))).mean()
    if not marked.any():
        return {"seen": seen}
    share, apart = pointed.sigmoid(), (1, 2)
    dice = 1 - (2 * (share * marked).sum(apart) + 1) / ((share + marked).sum(apart) + 1)
    entropy = F.binary_cross_entropy_with_logits(pointed, marked, pos_weight=pointed.new_tensor(3.0))
    return {"seen": seen, "pointed": 2 * entropy + dice.mean()}


def other_way_round(text: str) -> str:
    """Exchange the words left and right."""
    return SIDE.sub(lambda match: OPPOSITE[match[0]], text)


def mirrored(rows: np.ndarray) -> np.ndarray:
    """Pictures (N, H, W, ...), texts (N,) or flags (N,), each twice: as it is, and as a mirror shows it."""
    other = rows[:, :, ::-1] if rows.ndim > 1 else rows
    if rows.dtype.kind == "U":
        other = np.array([other_way_round(text) for text in rows])
    return np.stack([rows, other], 1).reshape(-1, *rows.shape[1:])


@torch.no_grad()
def _encoded(workspace: Path, name: str, base: FrozenBase, size: int, top: Tensor) -> dict[str, Tensor]:
    """What the network is given and told, and the latents that it begins with, that the base makes of these alone, and
    that it is to arrive at; made once.

    Every pair is followed by its mirror image.
    """
    path = workspace / "pictures" / f"sights-{name}-{size}.pt"
    if path.exists():
        return dict(torch.load(path, weights_only=True))
    with ProcessPoolExecutor() as executor:
        starts = range(0, COUNTS[size], CHUNK)
        parts = list(executor.map(partial(labelled, name, CHUNK, size, 5), starts))
    made = {key: mirrored(np.concatenate([part[key] for part in parts])) for key in parts[0]}

    def latents(images: Tensor) -> Tensor:
        pieces = (piece.to(base.device).float() / 255 for piece in images.split(64))
        return torch.cat([base.encode(as_picture(piece)).half().cpu() for piece in pieces])

    texts, places = np.unique(made["prompt"], return_inverse=True)
    prompts = [base.embed(texts[k : k + 256].tolist()).cpu() for k in range(0, len(texts), 256)]
    condition, target = (torch.from_numpy(made[key]).permute(0, 3, 1, 2) for key in ("condition", "target"))
    data = {
        "condition": condition,
        "prompt": torch.cat(prompts),
        "prompt_of": torch.from_numpy(places),
        "source": latents(condition),
        "x": latents(target),
        "labels": torch.from_numpy(made["labels"]),
        "marked": torch.from_numpy(made["marked"]),
        "removes": torch.from_numpy(made["removes"]),
    }
    data["alone"] = _alone(base, data, top)
    torch.save(data, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)
    return data


def _register(
    workspace: Path, name: str, base: FrozenBase, adapter: nn.Module, minutes: float, metrics: dict[str, float]
) -> None:
    run_folder = bundle.run_folder(workspace, f"sight-{name}", 1)
    folder = run_folder / "adapter"
    mark = base.fingerprint
    record = format.AdapterRecord(
        task=name,
        kind="side",
        base=format.BaseRecord(name=bundle.BASE, family=mark.family, sketch=mark.sketch),
        prediction_type=base.schedule.prediction_type,
        steps=1,
        config=adapter.config,  # type: ignore[arg-type]
        training={"method": "", "sight": f"{minutes:g} minutes"},
        metrics=metrics,
    )
    format.write(folder, adapter, record, CARD)
    count = sum(value.numel() for value in adapter.parameters())
    with Registry.open(workspace / "home") as registry:
        row, _ = registry.add_adapter(
            folder, task=name, base=bundle.BASE, kind="side", steps=1, parameters=count, metrics=metrics
        )
    (run_folder / bundle.DONE).write_text(row.ref)
