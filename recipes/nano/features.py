"""The feature network in which `codi eval` computes Frechet and perceptual distances.

Three losses at once, each for a property that a distance between images needs:

- quality: regression of the strength of blur, noise, JPEG, shrinking, blotches, ringing and colour stretch of a view,
  so that features respond to artefacts;
- same: which two views of a batch, cropped and mirrored differently, are of one image (InfoNCE: van den Oord et al.,
  2018; views as in Chen et al., 2020), so that they respond to content. Both views are degraded alike: otherwise this
  loss asks features to ignore what the first asks them to respond to, and dominates short trainings;
- words: which words of its caption apply to a view of a scene, so that they respond to objects, textures and light.

It has no weights, latents or losses in common with the models it measures.
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
from recipes.nano.kernels import training_precision
from recipes.nano.stage import train

BATCH = 32  # images per step, two views each
VIEW = 64  # side in px
HELD_OUT = 128  # images at the end of each pool that are not trained on
ODDS = 0.25  # probability of each degradation; one view in eight has none
TEMPERATURE = 0.1
WEIGHTS = {"quality": 20.0, "same": 0.3, "words": 1.0}
DEGRADATIONS = ("colour", "blur", "shrinking", "ringing", "blotches", "noise", "jpeg")
CARD = """# The feature network of CoDi Hub's evaluation

A plain convolutional network of {parameters:,} parameters, {levels} levels, no normalisation. `codi eval` measures its
Frechet distance in the pooled vector, and its perceptual distance in the feature maps. **They are not FID and not
LPIPS**: values compare with each other, not with those of another network. `--features PATH` replaces it.

`python -m recipes.nano features` trained it from random weights, on {leaves:,} dead-leaves images and {scenes:,}
rendered scenes. No photograph was among them. It shares no weights with the models it measures.

Training: {steps:,} steps of {batch} images in two views of {view} px, {minutes:.1f} minutes, on {hardware}, with
batch normalisation, which is folded into the convolutions. Losses, summed: regression of the strength of
{degradations}, drawn at random for each image; InfoNCE between the
two views of an image; presence of the caption's {words} words. The pooled vector is scaled to unit variance on clean
training images.

On {held_out} held-out images: the other view of the same image is found among {held_out} in {found:.0%} of
cases (by chance {chance:.1%}); correlation of predicted with true strength: {correlations}.
"""


class Learner(nn.Module):
    """The network with a head per loss; the heads are discarded."""

    def __init__(self, words: int):
        super().__init__()
        self.net = normalised(FeatureNet())
        width = self.net.config["pooled"]
        self.quality = nn.Linear(width, len(DEGRADATIONS))
        self.words = nn.Linear(width, words)
        self.same = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 64))

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return strengths, logits of the words, and unit vectors of content."""
        pooled = self.net(views)[1].float()
        return self.quality(pooled), self.words(pooled), F.normalize(self.same(pooled), dim=1)


def normalised(net: FeatureNet) -> FeatureNet:
    """Return the network with batch normalisation after each convolution, without which it hardly learns in minutes."""
    for k, level in enumerate(net.levels):
        layers: list[nn.Module] = []
        for layer in level:
            layers += [layer, nn.BatchNorm2d(layer.out_channels)] if isinstance(layer, nn.Conv2d) else [layer]
        net.levels[k] = nn.Sequential(*layers)
    return net


def folded(net: FeatureNet) -> FeatureNet:
    """Return a `normalised` network as a plain one with equal outputs: normalisations are folded into convolutions."""
    for k, level in enumerate(net.levels):
        pairs = zip(level, [*level[1:], None], strict=True)
        layers = [fuse_conv_bn_eval(a, b) if isinstance(b, nn.BatchNorm2d) else a for a, b in pairs]
        net.levels[k] = nn.Sequential(*(layer for layer in layers if not isinstance(layer, nn.BatchNorm2d)))
    return net


def vocabulary(captions: list[str]) -> list[str]:
    """Return the words that distinguish captions: those in 2% to 60% of them."""
    counts = Counter(word for caption in captions for word in set(re.findall(r"[a-z]+", caption)))
    return sorted(word for word, count in counts.items() if 0.02 <= count / len(captions) <= 0.6)


def bag_of_words(captions: list[str], words: list[str]) -> np.ndarray:
    """Return which words each caption has, float32 (captions, words)."""
    sets = [set(re.findall(r"[a-z]+", caption)) for caption in captions]
    return np.array([[word in found for word in words] for found in sets], np.float32)


def window(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random square of at least half the image's side, perhaps mirrored: float32 (VIEW, VIEW, 3) in [0, 1]."""
    side = int(rng.integers(image.shape[0] // 2, image.shape[0] + 1))
    top, left = rng.integers(0, image.shape[0] - side + 1, 2)
    piece = Image.fromarray(image[top : top + side, left : left + side]).resize((VIEW, VIEW), Image.Resampling.BICUBIC)
    pixels = np.asarray(piece)
    return (pixels[:, ::-1] if rng.random() < 0.5 else pixels).astype(np.float32) / 255


def strengths(rng: np.random.Generator) -> np.ndarray:
    """Return one random strength in [0, 1] per degradation, mostly 0; float32 in the order of the names."""
    count = len(DEGRADATIONS)
    return (rng.random(count) * (rng.random(count) < ODDS)).astype(np.float32)


def degrade(image: np.ndarray, amounts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply each degradation at its strength to an image, float32 (H, W, 3) in [0, 1]."""
    colour, blur, shrinking, ringing, blotches, noise, quality = amounts.tolist()
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
    if blotches:  # coloured spots of a latent cell's size, an artefact of sampling in few steps
        spots = rng.standard_normal((side // 4, side // 4, 3)).astype(np.float32)
        image = image + 0.12 * np.float32(blotches) * resize(spots, (side, side), Image.Resampling.BICUBIC)
    if noise:
        image = add_gaussian_noise(image, 2 + 30 * noise, rng)
    if quality:
        image = jpeg(image, round(90 - 80 * quality)).astype(np.float32) / 255
    return np.clip(image, 0, 1).astype(np.float32)


def batch(images: list[np.ndarray], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return two views of each image, degraded alike, (2 N, 3, VIEW, VIEW) in [0, 1], first views first; strengths."""
    amounts = [strengths(rng) for _ in images]
    crops = [
        degrade(window(image, rng), row, rng) for _ in range(2) for image, row in zip(images, amounts, strict=True)
    ]
    views = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
    return views.contiguous(memory_format=torch.channels_last), torch.from_numpy(np.stack([*amounts, *amounts]))


def same(vectors: Tensor) -> Tensor:
    """Return InfoNCE over unit vectors (2 N, D); rows k and k + N are of one image."""
    count = len(vectors) // 2
    similarity = vectors @ vectors.T / TEMPERATURE
    similarity.fill_diagonal_(-torch.inf)
    other = torch.arange(2 * count, device=vectors.device).roll(count)
    return F.cross_entropy(similarity, other)


def run(
    workspace: Path, scenes: np.ndarray, captions: list[str], leaves: np.ndarray, minutes: float, device: str = "cpu"
) -> Path:
    """Train within the budget and write `workspace/features`."""
    words = vocabulary(captions)
    targets = torch.from_numpy(bag_of_words(captions, words))
    torch.manual_seed(0)
    model = Learner(len(words)).to(device, memory_format=torch.channels_last)

    def loss_of(network: Learner, number: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([79, number])
        rows = rng.integers(0, len(scenes) - HELD_OUT, BATCH // 2)
        others = rng.integers(0, len(leaves) - HELD_OUT, BATCH - len(rows))
        views, true = batch([*(scenes[k] for k in rows), *(leaves[k] for k in others)], rng)
        with training_precision(device):
            predicted, logits, vectors = network(views.to(device))
        scene_rows = torch.cat([torch.arange(len(rows)), BATCH + torch.arange(len(rows))])
        present = targets[torch.from_numpy(rows)].repeat(2, 1).to(device)
        return {
            "quality": WEIGHTS["quality"] * F.mse_loss(predicted.float(), true.to(device)),
            "same": WEIGHTS["same"] * same(vectors.float()),
            "words": WEIGHTS["words"] * F.binary_cross_entropy_with_logits(logits[scene_rows].float(), present),
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
def _held_out(model: Learner, images: list[np.ndarray], device: str) -> dict[str, float | str]:
    """Return how often the nearest view is of the same image, and the correlation of each predicted strength."""
    views, true = batch(images, np.random.default_rng([79, 2**31]))
    predicted, _, vectors = model(views.to(device))
    first, second = vectors.chunk(2)
    found = (first @ second.T).argmax(1).cpu() == torch.arange(len(first))
    pairs = zip(DEGRADATIONS, predicted.cpu().T.numpy(), true.T.numpy(), strict=True)
    correlations = [f"{name} {np.corrcoef(a, b)[0, 1]:.2f}" for name, a, b in pairs]
    return {"found": float(found.float().mean()), "correlations": ", ".join(correlations)}


@torch.no_grad()
def _scale(net: FeatureNet, images: list[np.ndarray], device: str) -> None:
    """Scale the last layer so that the pooled vector has unit variance, on average, on these images."""
    rng = np.random.default_rng(80)
    views = torch.from_numpy(np.stack([window(image, rng) for image in images])).permute(0, 3, 1, 2)
    deviation = torch.cat([net(part.to(device))[1] for part in views.split(64)]).var(0).mean().sqrt()
    last = net.levels[-1][2]
    last.weight.div_(deviation)
    last.bias.div_(deviation)
