"""What an adapter that is told about things learns first: to see what lies where, and to point at what is named.

From edits alone it tints pictures long before it finds a thing: an edited thing is a hundredth of the picture, and says
next to nothing of all the others in it. Here every place is asked which shape and colour lies there, and whether it
belongs to the thing that an instruction names. Given a depth map and a caption, the same question is which word goes
where. The heads that answer are thrown away; the network goes on as an adapter of its task.
"""

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from codi_hub import adapters, tasks
from codi_hub.adapters import Adapter, format
from codi_hub.base import FrozenBase
from codi_hub.data.raycast import things_at
from codi_hub.data.scenes import viewed
from codi_hub.data.scenes_words import COLOURS, EDITS
from codi_hub.registry import Registry
from recipes.nano import bundle
from recipes.nano.stage import train

COUNT, SIZE = 14_000, 64  # scenes, px
CHUNK = 200
BATCH = 24
HELD_OUT = 256  # scenes at the end that training never sees
FORM = {"levels": 3, "blocks": 2, "read": True}
FORMS = {"edit": FORM | {"start": 0.2, "start_noise": 0.0}, "depth": FORM | {"condition_channels": 1}}
SHAPES, NAMES = ("sphere", "box", "cone", "cylinder"), tuple(COLOURS)
CLASSES = 1 + len(SHAPES) * len(NAMES)  # 0 is no thing
FINE = 2  # places that the heads ask for, along each side of a latent's cell
LEAST = 6  # places, from which on a thing can be named
SILENT = 0.1  # share of the texts that are empty, and name nothing
CARRIED = 0.3  # of a block's last normalisation at the beginning, so that many blocks stay a small change


def labelled(count: int, size: int, seed: int, first: int = 0) -> dict[str, np.ndarray]:
    """Scenes and what is seen in them.

    Returns:
        `image` uint8 (count, size, size, 3), `depth` uint8 (count, size, size, 1) as the task makes it, `caption`, and
        `labels`, the classes: uint8 (count, size / 2, size / 2).
    """
    depth, rows = tasks.load("depth"), list[dict[str, Any]]()
    for number in range(first, first + count):
        setting, made, _ = viewed(np.random.default_rng([seed, number]), size)
        things = setting.world.things
        classes = [1 + SHAPES.index(thing.shape) * len(NAMES) + NAMES.index(thing.words[1]) for thing in things]
        labels = np.array([*classes, 0], np.uint8)[np.maximum(things_at(setting.world, size // 2), -1)]
        seen = {"image": made.image, "depth": made.depth, "caption": made.caption}
        map_of = depth.make_pair(seen, np.random.default_rng(0)).condition
        rows.append({**seen, "depth": map_of, "labels": labels})
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def told(labels: np.ndarray, rng: np.random.Generator) -> tuple[str, np.ndarray]:
    """An instruction about a thing in sight, and where that is, bool; or neither.

    Args:
        labels: of one scene, as `labelled` gives them.
    """
    found, counts = np.unique(labels, return_counts=True)
    seen = found[(found > 0) & (counts >= LEAST)]
    if not len(seen) or rng.random() < SILENT:
        return "", np.zeros(labels.shape, bool)
    chosen = int(rng.choice(seen))
    shape, colour = divmod(chosen - 1, len(NAMES))
    alone = sum((int(other) - 1) // len(NAMES) == shape for other in seen) == 1
    name = SHAPES[shape] if alone else f"{NAMES[colour]} {SHAPES[shape]}"
    kind = "remove" if rng.random() < 1 / 3 else "recolour"
    return str(rng.choice(EDITS[kind])).format(name, rng.choice(NAMES)), labels == chosen


class Learner(nn.Module):
    """A side network with two heads on what it would answer from."""

    def __init__(self, adapter: Adapter):
        super().__init__()
        self.adapter = normalised(adapter)
        width = adapter.out.in_channels  # type: ignore[union-attr]
        self.classes = nn.Conv2d(width, CLASSES * FINE**2, 1)
        self.pointed = nn.Conv2d(width, FINE**2, 1)

    def forward(self, images: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) -> logits of the classes (B, CLASSES, h, w), and of what the text names (B, h, w)."""
        hidden: list[Tensor] = []
        hook = self.adapter.out.register_forward_pre_hook(lambda _, given: hidden.append(given[0]))  # type: ignore[union-attr]
        self.adapter.prepare(images, prompt)
        hook.remove()
        classes, pointed = (F.pixel_shuffle(head(hidden[0]), FINE) for head in (self.classes, self.pointed))
        return classes.float(), pointed[:, 0].float()


def normalised(module: nn.Module) -> nn.Module:
    """With batch normalisation after each 3 x 3 convolution but the last, with which it learns half as fast again."""
    for name, part in module.named_children():
        if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3) and name != "out":
            norm = nn.BatchNorm2d(part.out_channels)
            if name == "last":
                nn.init.constant_(norm.weight, CARRIED)  # type: ignore[arg-type]
            setattr(module, name, nn.Sequential(part, norm))
        else:
            normalised(part)
    return module


def folded(module: nn.Module) -> nn.Module:
    """What `normalised` has made, in its first form and computing the same: convolutions take in what follows them."""
    for name, part in module.eval().named_children():
        if isinstance(part, nn.Sequential) and isinstance(part[-1], nn.BatchNorm2d):
            setattr(module, name, fuse_conv_bn_eval(part[0], part[1]))
        else:
            folded(part)
    return module


def losses(classes: Tensor, pointed: Tensor, labels: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Cross-entropy of the classes, things counting five times; cross-entropy and Dice loss of what is pointed at."""
    seen = (F.cross_entropy(classes, labels, reduction="none") * (1 + 4 * (labels > 0))).mean()
    share, apart = pointed.sigmoid(), (1, 2)
    dice = 1 - (2 * (share * masks).sum(apart) + 1) / ((share + masks).sum(apart) + 1)
    entropy = F.binary_cross_entropy_with_logits(pointed, masks, pos_weight=torch.tensor(3.0))
    return {"seen": seen, "pointed": 2 * entropy + dice.mean()}


def run(workspace: Path, task: str, minutes: float, device: str = "cpu") -> None:
    """Trains within the budget, and registers what it makes as an adapter of `task` that others go on from."""
    scenes = _pictures(workspace / "pictures")
    base = FrozenBase.load(str(workspace / "base"), device=torch.device(device))
    torch.manual_seed(0)
    model = Learner(adapters.build("side", base, **FORMS[task])).to(device, memory_format=torch.channels_last)

    def loss_of(network: Learner, number: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([81, number])
        rows = rng.integers(0, len(scenes["labels"]) - HELD_OUT, BATCH)
        return losses(*_answers(network, task, base, {name: of[rows] for name, of in scenes.items()}, rng))

    model.load_state_dict(train(workspace / f"sight-{task}", model, loss_of, minutes=minutes, lr=1e-3, ema_decay=0.99))
    model.eval()
    with torch.no_grad():
        held = {name: of[-HELD_OUT:] for name, of in scenes.items()}
        metrics = _scores(*_answers(model, task, base, held, np.random.default_rng(82)))
    print(metrics)
    _register(workspace, task, base, folded(model.adapter), minutes, metrics)


def _pictures(folder: Path) -> dict[str, np.ndarray]:
    path = folder / f"sights-{SIZE}-{COUNT}.npz"
    if not path.exists():
        with ProcessPoolExecutor() as executor:
            parts = list(executor.map(partial(labelled, CHUNK, SIZE, 5), range(0, COUNT, CHUNK)))
        part = path.with_suffix(".part.npz")
        np.savez(part, **{name: np.concatenate([one[name] for one in parts]) for name in parts[0]})
        part.rename(path)
    with np.load(path) as kept:
        return dict(kept)


def _answers(
    network: Learner, task: str, base: FrozenBase, scenes: dict[str, np.ndarray], rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The network's answers about some scenes, each under its text, and what is true."""
    labels = scenes["labels"]
    if task == "edit":
        texts, masks = zip(*(told(one, rng) for one in labels), strict=True)
    else:  # the caption names all there is, and nothing is pointed at
        texts, masks = scenes["caption"].tolist(), np.zeros(labels.shape, bool)
    given = scenes["image" if task == "edit" else "depth"]
    pixels = torch.from_numpy(given).permute(0, 3, 1, 2).to(base.device).float() / 255
    with torch.autocast(base.device.type, torch.bfloat16):
        answers = network(pixels.contiguous(memory_format=torch.channels_last), base.embed(list(texts)))
    true = (torch.from_numpy(labels).long(), torch.from_numpy(np.stack(masks)).float())
    return *answers, *(value.to(base.device) for value in true)


def _scores(classes: Tensor, pointed: Tensor, labels: Tensor, masks: Tensor) -> dict[str, float]:
    """Of the places of things, the share whose shape and colour are told; mean overlap with the thing that is named."""
    things, named = labels > 0, masks.sum((1, 2)) > 0
    both, either = ((pointed > 0) & (masks > 0)).sum((1, 2)), ((pointed > 0) | (masks > 0)).sum((1, 2))
    scores = {"things_told": float((classes.argmax(1) == labels)[things].float().mean())}
    if named.any():
        scores["overlap"] = float((both / either)[named].mean())
    return {name: round(value, 4) for name, value in scores.items()}


def _register(
    workspace: Path, task: str, base: FrozenBase, adapter: nn.Module, minutes: float, metrics: dict[str, float]
) -> None:
    run_folder = bundle.run_folder(workspace, f"sight-{task}", 1)
    folder = run_folder / "adapter"
    mark = base.fingerprint
    record = format.AdapterRecord(
        task=task,
        kind="side",
        base=format.BaseRecord(name=bundle.BASE, family=mark.family, sketch=mark.sketch),
        prediction_type=base.schedule.prediction_type,
        steps=1,
        config=adapter.config,  # type: ignore[arg-type]
        training={"method": "", "sight": f"{minutes:g} minutes"},
        metrics=metrics,
    )
    format.write(folder, adapter, record, "It has learnt to see what it is told about, and adds nothing yet.\n")
    count = sum(value.numel() for value in adapter.parameters())
    with Registry.open(workspace / "home") as registry:
        row, _ = registry.add_adapter(
            folder, task=task, base=bundle.BASE, kind="side", steps=1, parameters=count, metrics=metrics
        )
    (run_folder / bundle.DONE).write_text(row.ref)
