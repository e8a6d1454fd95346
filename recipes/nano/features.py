"""The feature network that `codi eval` measures Frechet and perceptual distances in.

Three things are asked of it at once, each of which a distance between pictures needs:

- quality: how much blur, noise, JPEG, shrinking, blotches, ringing and colour stretch a view was given (regression), so
  that features see artefacts;
- same: which two of a batch's views, differently cut and mirrored, are of one picture (InfoNCE: van den Oord et al.,
  2018; views as in Chen et al., 2020), so that they see content. Both views are degraded alike: where they were not,
  this asked features to ignore what the first asks them to see, and won over short runs;
- words: which words of its caption belong to a view of a scene, so that they see things, textures and light.

It shares nothing with the models it measures: neither weights, nor latents, nor their losses.
"""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from codi_hub.evaluation.features import FeatureNet, save_features
from codi_hub.images.filters import resize, smooth
from codi_hub.tasks.degradation import add_gaussian_noise, jpeg
from recipes.nano.stage import train

BATCH = 32  # pictures per step, two views each
VIEW = 64  # px a side
HELD_OUT = 128  # pictures at the end of each pool that training never sees
ODDS = 0.25  # of each degradation; a view in eight escapes them all
TEMPERATURE = 0.1
WEIGHTS = {"quality": 20.0, "same": 0.3, "words": 1.0}
DEGRADATIONS = ("colour", "blur", "shrinking", "ringing", "blotches", "noise", "jpeg")
CARD = """# The feature network of CoDi Hub's evaluation

A plain convolutional network of {parameters:,} parameters, {levels} levels, no normalisation. `codi eval` measures its
Frechet distance in the pooled vector, and its perceptual distance in the feature maps. **They are no FID and no
LPIPS**: figures compare with each other, not with those of another network. `--features PATH` puts another in its
place.

Made from nothing by `python -m recipes.nano features`, on {leaves:,} dead-leaves pictures and {scenes:,} rendered
scenes that this project makes. It has never seen a photograph, and shares no weights with the models it measures.

Training: {steps:,} steps of {batch} pictures in two views of {view} px, {minutes:.1f} minutes, on {hardware}, with
batch normalisation, which is folded into the convolutions. Losses, all at once: regression of the strength of
{degradations}, drawn at random for each picture; InfoNCE between the
two views of a picture; presence of the caption's {words} words. The pooled vector is scaled to unit variance on clean
training pictures.

On {held_out} pictures not trained on: the other view of the same picture is found among {held_out} in {found:.0%} of
cases (by chance {chance:.1%}); correlation of told with true strength: {correlations}.
"""


class Learner(nn.Module):
    """The network with a head per objective; the heads are thrown away."""

    def __init__(self, words: int):
        super().__init__()
        self.net = normalised(FeatureNet())
        width = self.net.config["pooled"]
        self.quality = nn.Linear(width, len(DEGRADATIONS))
        self.words = nn.Linear(width, words)
        self.same = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 64))

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Strengths, words' logits, and unit vectors of content."""
        pooled = self.net(views)[1].float()
        return self.quality(pooled), self.words(pooled), F.normalize(self.same(pooled), dim=1)


def normalised(net: FeatureNet) -> FeatureNet:
    """The network with batch normalisation after each convolution, without which it hardly learns in minutes."""
    for k, level in enumerate(net.levels):
        layers: list[nn.Module] = []
        for layer in level:
            layers += [layer, nn.BatchNorm2d(layer.out_channels)] if isinstance(layer, nn.Conv2d) else [layer]
        net.levels[k] = nn.Sequential(*layers)
    return net


def folded(net: FeatureNet) -> FeatureNet:
    """A `normalised` network as a plain one that computes the same: the normalisation goes into the convolutions."""
    for k, level in enumerate(net.levels):
        pairs = zip(level, [*level[1:], None], strict=True)
        layers = [fuse_conv_bn_eval(a, b) if isinstance(b, nn.BatchNorm2d) else a for a, b in pairs]
        net.levels[k] = nn.Sequential(*(layer for layer in layers if not isinstance(layer, nn.BatchNorm2d)))
    return net


def vocabulary(captions: list[str]) -> list[str]:
    """Words that tell captions apart: in 2% to 60% of them."""
    counts = Counter(word for caption in captions for word in set(re.findall(r"[a-z]+", caption)))
    return sorted(word for word, count in counts.items() if 0.02 <= count / len(captions) <= 0.6)


def spelt(captions: list[str], words: list[str]) -> np.ndarray:
    """Which words each caption has, float32 (captions, words)."""
    sets = [set(re.findall(r"[a-z]+", caption)) for caption in captions]
    return np.array([[word in found for word in words] for found in sets], np.float32)


def window(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random square of at least half the picture's side, at VIEW px, mirrored or not: float32 (VIEW, VIEW, 3)."""
    side = int(rng.integers(image.shape[0] // 2, image.shape[0] + 1))
    top, left = rng.integers(0, image.shape[0] - side + 1, 2)
    piece = Image.fromarray(image[top : top + side, left : left + side]).resize((VIEW, VIEW), Image.Resampling.BICUBIC)
    pixels = np.asarray(piece)
    return (pixels[:, ::-1] if rng.random() < 0.5 else pixels).astype(np.float32) / 255


def strengths(rng: np.random.Generator) -> np.ndarray:
    """One strength per degradation, in 0..1, 0 unless the dice say so; float32 in the order of the names."""
    count = len(DEGRADATIONS)
    return (rng.random(count) * (rng.random(count) < ODDS)).astype(np.float32)


def degrade(image: np.ndarray, told: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A picture, float32 (H, W, 3) in [0, 1], after each degradation at its strength."""
    colour, blur, shrinking, ringing, blotches, noise, quality = told.tolist()
    side = image.shape[0]
    if colour:
        gray = image.mean((0, 1), keepdims=True)
        image = gray + (1 + colour) * (image - gray)
    if blur:
        image = smooth(image, 0.4 + 2.6 * blur)
    if shrinking:
        small = round(side / (1 + 3 * shrinking))
        image = resize(resize(image, (small, small), Image.Resampling.BOX), (side, side), Image.Resampling.BICUBIC)
    if ringing:
        image = image + 3 * ringing * (image - smooth(image, 1.2))
    if blotches:  # coloured spots of a latent's size, what few steps of sampling leave behind
        spots = rng.standard_normal((side // 4, side // 4, 3)).astype(np.float32)
        image = image + 0.12 * np.float32(blotches) * resize(spots, (side, side), Image.Resampling.BICUBIC)
    if noise:
        image = add_gaussian_noise(image, 2 + 30 * noise, rng)
    if quality:
        image = jpeg(image, round(90 - 80 * quality)).astype(np.float32) / 255
    return np.clip(image, 0, 1).astype(np.float32)


def batch(pictures: list[np.ndarray], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Two views of each picture, degraded alike: (2 N, 3, VIEW, VIEW) in [0, 1], all first ones first; strengths."""
    told = [strengths(rng) for _ in pictures]
    made = [
        degrade(window(picture, rng), row, rng) for _ in range(2) for picture, row in zip(pictures, told, strict=True)
    ]
    views = torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)
    return views.contiguous(memory_format=torch.channels_last), torch.from_numpy(np.stack([*told, *told]))


def same(vectors: Tensor) -> Tensor:
    """InfoNCE over unit vectors (2 N, D), row k and row k + N being of one picture."""
    count = len(vectors) // 2
    likeness = vectors @ vectors.T / TEMPERATURE
    likeness.fill_diagonal_(-torch.inf)
    other = torch.arange(2 * count, device=vectors.device).roll(count)
    return F.cross_entropy(likeness, other)


def run(
    workspace: Path, scenes: np.ndarray, captions: list[str], leaves: np.ndarray, minutes: float, device: str = "cpu"
) -> Path:
    """Trains within the budget and writes `workspace/features`."""
    words = vocabulary(captions)
    targets = torch.from_numpy(spelt(captions, words))
    torch.manual_seed(0)
    model = Learner(len(words)).to(device, memory_format=torch.channels_last)

    def loss_of(network: Learner, number: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([79, number])
        rows = rng.integers(0, len(scenes) - HELD_OUT, BATCH // 2)
        others = rng.integers(0, len(leaves) - HELD_OUT, BATCH - len(rows))
        views, true = batch([*(scenes[k] for k in rows), *(leaves[k] for k in others)], rng)
        with torch.autocast(device, torch.bfloat16):
            told, logits, vectors = network(views.to(device))
        seen = torch.cat([torch.arange(len(rows)), BATCH + torch.arange(len(rows))])
        present = targets[torch.from_numpy(rows)].repeat(2, 1).to(device)
        return {
            "quality": WEIGHTS["quality"] * F.mse_loss(told.float(), true.to(device)),
            "same": WEIGHTS["same"] * same(vectors.float()),
            "words": WEIGHTS["words"] * F.binary_cross_entropy_with_logits(logits[seen].float(), present),
        }

    training = workspace / "feature-training"
    model.load_state_dict(train(training, model, loss_of, minutes=minutes, lr=2e-3, ema_decay=0.99))
    model.eval()
    figures = _held_out(model, [*scenes[-HELD_OUT // 2 :], *leaves[-HELD_OUT // 2 :]], device)
    _scale(folded(model.net), [*scenes[:256], *leaves[:256]], device)
    counts = {"leaves": len(leaves) - HELD_OUT, "scenes": len(scenes) - HELD_OUT, "words": len(words)}
    save_features(workspace / "features", model.net, _card(model.net, training, device, **counts, **figures))
    return workspace / "features"


def _card(net: FeatureNet, training: Path, device: str, **figures: float | str) -> str:
    kept = torch.load(training / "checkpoint.pt", map_location="cpu", weights_only=True)
    return CARD.format(
        parameters=sum(p.numel() for p in net.parameters()),
        levels=len(net.levels),
        steps=kept["step"],
        batch=BATCH,
        view=VIEW,
        minutes=kept["spent"] / 60,
        hardware=torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads",
        degradations=", ".join(DEGRADATIONS),
        held_out=HELD_OUT,
        chance=1 / HELD_OUT,
        **figures,
    )


@torch.no_grad()
def _held_out(model: Learner, pictures: list[np.ndarray], device: str) -> dict[str, float | str]:
    """How often a view finds its fellow, and how well each strength is told."""
    views, true = batch(pictures, np.random.default_rng([79, 2**31]))
    told, _, vectors = model(views.to(device))
    first, second = vectors.chunk(2)
    found = (first @ second.T).argmax(1).cpu() == torch.arange(len(first))
    pairs = zip(DEGRADATIONS, told.cpu().T.numpy(), true.T.numpy(), strict=True)
    correlations = [f"{name} {np.corrcoef(a, b)[0, 1]:.2f}" for name, a, b in pairs]
    return {"found": float(found.float().mean()), "correlations": ", ".join(correlations)}


@torch.no_grad()
def _scale(net: FeatureNet, pictures: list[np.ndarray], device: str) -> None:
    """Scales the last layer so that the pooled vector has unit variance, on average, on these pictures."""
    rng = np.random.default_rng(80)
    views = torch.from_numpy(np.stack([window(picture, rng) for picture in pictures])).permute(0, 3, 1, 2)
    deviation = torch.cat([net(part.to(device))[1] for part in views.split(64)]).var(0).mean().sqrt()
    last = net.levels[-1][2]
    last.weight.div_(deviation)
    last.bias.div_(deviation)
