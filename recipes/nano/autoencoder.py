"""The autoencoder of nano: diffusers' AutoencoderTiny, f4, 8 latent channels, trained on leaves and scenes."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from torch import nn

from recipes.nano.stage import train

CROP = 64
BATCH = 16
WIDTH = 48  # 4 x 4 cells of 3 colours: the encoder can begin by holding a cell's pixels as they are
# (colour axis, vertical, horizontal frequency) of a cell's cosine transform that each latent channel begins as
COSINES = ((0, 0, 0), (1, 0, 0), (2, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (0, 0, 2), (0, 2, 0))
DEVIATIONS = (7.8, 2.5, 1.0, 0.8, 0.8, 0.25, 0.3, 0.3)  # of these, on leaves
AXES = ((0.577, 0.577, 0.577), (0.707, 0.0, -0.707), (0.408, -0.816, 0.408))  # luma, orange-blue, magenta-green
LATENT_NOISE = 0.03  # the decoder must bear the error of a few-step prediction, not only the encoder's exact latents


def build() -> AutoencoderTiny:
    """An untrained autoencoder. Most blocks lie at low resolution: a convolution at full size costs 16 of those."""
    model = AutoencoderTiny(
        encoder_block_out_channels=(WIDTH,) * 3,
        decoder_block_out_channels=(WIDTH,) * 3,
        num_encoder_blocks=(0, 2, 3),
        num_decoder_blocks=(4, 2, 1),
        latent_channels=len(COSINES),
        scaling_factor=1.0,
    )
    begin_as_cosines(model)
    return model


@torch.no_grad()
def begin_as_cosines(model: AutoencoderTiny) -> None:
    """Makes the encoder what JPEG does to a cell: pixels gathered from 4 x 4, low frequencies of each colour axis kept.

    From random weights, colours take thousands of steps to come through.
    """
    layers = model.encoder.layers
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    stem, *halvings, last = convolutions
    for layer in layers:
        if isinstance(layer, AutoencoderTinyBlock):
            nn.init.zeros_(layer.conv[-1].weight)  # a block begins as nothing but its shortcut
            nn.init.zeros_(layer.conv[-1].bias)
    for layer in convolutions:
        layer.weight.mul_(0.05)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    stem.weight[:3, :, 1, 1] += torch.eye(3)
    for count, layer in zip((3, 12), halvings, strict=True):
        for k, (down, right) in enumerate(product((0, 1), repeat=2)):  # the four phases, one beside the other
            layer.weight[k * count : (k + 1) * count, :count, 1 + down, 1 + right] += torch.eye(count)
    wave = np.cos(np.pi / 4 * np.arange(4)[:, None] * (np.arange(4) + 0.5))  # (frequency, place)
    for channel, (axis, vertical, horizontal) in enumerate(COSINES):
        basis = np.zeros(WIDTH, np.float32)
        for (y2, x2), (y1, x1) in product(product((0, 1), repeat=2), repeat=2):
            place = wave[vertical, 2 * y2 + y1] * wave[horizontal, 2 * x2 + x1]
            first = 3 * (4 * (2 * y2 + x2) + 2 * y1 + x1)
            basis[first : first + 3] = place * np.array(AXES[axis])
        basis *= 0.6 / np.sqrt(DEVIATIONS[channel])  # between pixels' own weights and latents that all weigh the same
        last.weight[channel, :, 1, 1] += torch.from_numpy(basis)
        last.bias[channel] = -0.45 * float(basis.sum())  # of a photograph's mean


def crops(pools: list[np.ndarray], number: int) -> torch.Tensor:
    """A batch of random crops in [-1, 1], float32 (BATCH, 3, CROP, CROP), flipped and turned at random."""
    rng = np.random.default_rng([77, number])
    batch = []
    for _ in range(BATCH):
        source = pools[rng.integers(len(pools))]
        image = source[rng.integers(len(source))]
        top, left = rng.integers(0, image.shape[0] - CROP + 1, 2)
        piece = np.rot90(image[top : top + CROP, left : left + CROP], rng.integers(4))
        batch.append(piece[:, ::-1] if rng.random() < 0.5 else piece)
    array = np.stack(batch).astype(np.float32)
    # every hue at every saturation: four latent channels drop the colours that they rarely see
    for k in np.flatnonzero(rng.random(BATCH) < 0.5):
        gray = array[k].mean(-1, keepdims=True)
        array[k] = np.clip(gray + rng.uniform(0.5, 3.0) * (array[k] - gray), 0, 255)[..., rng.permutation(3)]
    return torch.from_numpy(array).permute(0, 3, 1, 2).div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


def reconstruction(output: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    """Distances on pixels, on their differences, and on the mean colour of each latent cell.

    The differences keep edges, which GMSD sees and plain L1 lets blur. Without the last term four channels settled on
    three of detail and one of colour: reds and greens were lost, and 3,000 steps did not bring them back.
    """
    across = (output.diff(dim=3) - target.diff(dim=3)).abs().mean()
    down = (output.diff(dim=2) - target.diff(dim=2)).abs().mean()
    colour = (F.avg_pool2d(output, 4) - F.avg_pool2d(target, 4)).square().mean()
    return {"pixel": (output - target).abs().mean(), "gradient": 0.5 * (across + down), "colour": 10 * colour}


def run(workspace: Path, pools: list[np.ndarray], minutes: float, device: str = "cpu") -> Path:
    """Trains within the budget and writes `workspace/base/vae`, scaled so that latents have unit deviation."""
    torch.manual_seed(0)
    model = build().to(device, memory_format=torch.channels_last)

    def loss_of(network: AutoencoderTiny, number: int) -> dict[str, torch.Tensor]:
        images = crops(pools, number).to(device)
        with torch.autocast(device, torch.bfloat16):
            latents = network.encoder(images)
            noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(number)).to(latents)
            decoded = network.decoder(latents + LATENT_NOISE * noise)
        latents, decoded = latents.float(), decoded.float()
        return {**reconstruction(decoded, images), "size": 0.003 * (latents**2).mean()}

    model.load_state_dict(train(workspace / "autoencoder", model, loss_of, minutes=minutes, lr=1e-3))
    model.eval()
    with torch.no_grad():
        latents = torch.cat([model.encoder(crops(pools, 10**9 + k).to(device)) for k in range(16)])
    model.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    (workspace / "autoencoder" / "latents.json").write_text(
        json.dumps({"mean": latents.mean((0, 2, 3)).tolist(), "std": latents.std((0, 2, 3)).tolist()})
    )
    folder = workspace / "base" / "vae"
    model.save_pretrained(folder)
    return folder
