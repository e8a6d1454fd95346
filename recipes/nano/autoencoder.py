"""The autoencoder of nano: diffusers' AutoencoderTiny, f4, 12 latent channels; a linear encoder, a trained decoder.

The encoder is not trained: its latents are the principal components of 4 x 4 pixels. The decoder is initialised to
output every cell's mean colour. From random weights, encoder and decoder took 2,900 steps to reconstruct photographs at
29.7 dB, with wrong colours for most of them; a decoder with this initialisation is better after some hundreds.
"""

from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from torch import Tensor, nn

from recipes.nano.kernels import training_precision
from recipes.nano.stage import train

CROP = 64
BATCH = 16
CELL = 4  # px a side
WIDTH = 3 * CELL**2  # channels of every layer: the encoder collects a cell's pixels in them
LATENTS = 12
LARGEST = 0.5  # deviation of the first component; the decoder clamps softly, and distorts values beyond 1 or 2
SAMPLES = 300  # images of each pool that the components are computed from
LATENT_NOISE = 0.007  # so that the decoder tolerates the error of few-step predictions


def build(mean: Tensor, basis: Tensor) -> AutoencoderTiny:
    """Return an autoencoder with a frozen linear encoder and a decoder that outputs cells of one colour.

    Args:
        mean: (WIDTH,) of cells in [0, 1], see `cells`.
        basis: (LATENTS, WIDTH); a latent is `basis @ (cell - mean)`.
    """
    model = AutoencoderTiny(
        encoder_block_out_channels=(WIDTH,) * 3,
        decoder_block_out_channels=(WIDTH,) * 3,
        num_encoder_blocks=(0, 0, 0),
        num_decoder_blocks=(4, 2, 1),  # most at low resolution: a convolution at full size costs 16 times as much
        latent_channels=len(basis),
        scaling_factor=1.0,
    )
    with torch.no_grad():
        _init_encoder(model.encoder, mean, basis)
        _init_decoder(model.decoder, mean, basis)
    model.encoder.requires_grad_(False)
    return model


def cells(images: np.ndarray) -> Tensor:
    """Return the cells of uint8 images (N, H, W, 3), float32 in [0, 1] (cells, WIDTH): by colour, then row by row."""
    pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255
    return F.unfold(pixels, CELL, stride=CELL).transpose(1, 2).reshape(-1, WIDTH)


def components(pools: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Return mean and principal components of the cells of some images, see `build`.

    A latent's deviation is the square root of its component's: between unscaled components, where fine detail would
    weigh next to nothing in the loss, and latents of equal deviation, where it would weigh most.
    """
    rows = torch.cat([cells(pool[:SAMPLES]) for pool in pools])
    mean = rows.mean(0)
    _, variances, directions = torch.linalg.svd((rows - mean).T @ (rows - mean) / len(rows))
    deviations = variances[:LATENTS].sqrt()
    return mean, directions[:LATENTS] * LARGEST / (deviations * deviations[0]).sqrt()[:, None]


def _init_encoder(encoder: nn.Module, mean: Tensor, basis: Tensor) -> None:
    """Set weights that collect pixels, two by two in each halving, and project them onto the basis."""
    stem, *halvings, last = (layer for layer in encoder.layers if isinstance(layer, nn.Conv2d))
    for layer in (stem, *halvings, last):
        nn.init.zeros_(layer.weight)
    nn.init.zeros_(stem.bias)
    stem.weight[:3, :, 1, 1] = torch.eye(3)
    for count, layer in zip((3, 12), halvings, strict=True):
        for k, (down, right) in enumerate(product((0, 1), repeat=2)):
            layer.weight[k * count : (k + 1) * count, :count, 1 + down, 1 + right] = torch.eye(count)
    by_place = basis.reshape(-1, 3, CELL, CELL)
    for k, ((down, right), (down1, right1)) in enumerate(product(product((0, 1), repeat=2), repeat=2)):
        last.weight[:, 3 * k : 3 * k + 3, 1, 1] = by_place[:, :, 2 * down + down1, 2 * right + right1]
    last.bias.copy_(-basis @ mean)


def _init_decoder(decoder: nn.Module, mean: Tensor, basis: Tensor) -> None:
    """Set weights that pass a cell's mean colour through the first three channels, and each latent and its negative."""
    first, *doublings, last = (layer for layer in decoder.layers if isinstance(layer, nn.Conv2d))
    for layer in decoder.layers:
        if isinstance(layer, AutoencoderTinyBlock):  # the block is its shortcut
            nn.init.zeros_(layer.conv[-1].weight)
            nn.init.zeros_(layer.conv[-1].bias)
    nn.init.zeros_(first.bias)
    first.weight[: 3 + 2 * len(basis)] = 0
    first.weight[:3, :, 1, 1] = torch.linalg.pinv(basis).reshape(3, CELL**2, -1).mean(1)
    first.bias[:3] = mean.reshape(3, -1).mean(1)
    for k in range(len(basis)):
        first.weight[3 + 2 * k, k, 1, 1], first.weight[4 + 2 * k, k, 1, 1] = 1, -1
    for layer in doublings:
        layer.weight *= 0.3
        layer.weight[:3] = 0
        layer.weight[:, :, 1, 1] += torch.eye(WIDTH)
    last.weight *= 0.05
    last.weight[:, :3] = 0
    last.weight[:, :3, 1, 1] = torch.eye(3)
    nn.init.zeros_(last.bias)


def crops(pools: list[np.ndarray], number: int) -> torch.Tensor:
    """Return random crops in [-1, 1], float32 (BATCH, 3, CROP, CROP), randomly rotated and flipped."""
    rng = np.random.default_rng([77, number])
    batch = []
    for _ in range(BATCH):
        source = pools[rng.integers(len(pools))]
        image = source[rng.integers(len(source))]
        top, left = rng.integers(0, image.shape[0] - CROP + 1, 2)
        piece = np.rot90(image[top : top + CROP, left : left + CROP], rng.integers(4))
        batch.append(piece[:, ::-1] if rng.random() < 0.5 else piece)
    array = np.stack(batch).astype(np.float32)
    # random hues and saturations
    for k in np.flatnonzero(rng.random(BATCH) < 0.5):
        gray = array[k].mean(-1, keepdims=True)
        array[k] = np.clip(gray + rng.uniform(0.5, 3.0) * (array[k] - gray), 0, 255)[..., rng.permutation(3)]
    return torch.from_numpy(array).permute(0, 3, 1, 2).div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


def reconstruction(output: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return distances of pixels, of their differences, and of the mean colour of each latent cell.

    The distance of differences keeps edges sharp, which L1 alone blurs.
    """
    across = (output.diff(dim=3) - target.diff(dim=3)).abs().mean()
    down = (output.diff(dim=2) - target.diff(dim=2)).abs().mean()
    colour = (F.avg_pool2d(output, CELL) - F.avg_pool2d(target, CELL)).square().mean()
    return {"pixel": (output - target).abs().mean(), "gradient": 0.5 * (across + down), "colour": 10 * colour}


def run(workspace: Path, pools: list[np.ndarray], minutes: float, device: str = "cpu") -> Path:
    """Train within the budget and write `workspace/base/vae`, scaled so that latents have unit deviation."""
    torch.manual_seed(0)
    model = build(*components(pools)).to(device, memory_format=torch.channels_last)

    def loss_of(network: AutoencoderTiny, number: int) -> dict[str, torch.Tensor]:
        images = crops(pools, number).to(device)
        latents = network.encoder(images)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(number)).to(latents)
        with training_precision(device):
            decoded = network.decoder(latents + LATENT_NOISE * noise)
        return reconstruction(decoded.float(), images)

    model.load_state_dict(train(workspace / "autoencoder", model, loss_of, minutes=minutes, lr=1e-3))
    model.eval()
    with torch.no_grad():
        latents = torch.cat([model.encoder(crops(pools, 10**9 + k).to(device)) for k in range(16)])
    model.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    folder = workspace / "base" / "vae"
    model.save_pretrained(folder)
    return folder
