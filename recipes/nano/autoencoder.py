"""The autoencoder of nano: diffusers' AutoencoderTiny, f4, 4 latent channels, trained on leaves."""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny

from recipes.nano.stage import train

CROP = 64
BATCH = 16
LATENT_NOISE = 0.06  # the decoder must bear the error of a few-step prediction, not only the encoder's exact latents


def build() -> AutoencoderTiny:
    """An untrained autoencoder. Most blocks lie at low resolution: a convolution at full size costs 16 of those."""
    return AutoencoderTiny(
        encoder_block_out_channels=(48, 48, 48),
        decoder_block_out_channels=(48, 48, 48),
        num_encoder_blocks=(0, 2, 3),
        num_decoder_blocks=(4, 2, 1),
        latent_channels=4,
        scaling_factor=1.0,
    )


def crops(pools: list[np.ndarray], step: int) -> torch.Tensor:
    """A batch of random crops in [-1, 1], float32 (BATCH, 3, CROP, CROP), flipped and turned at random."""
    rng = np.random.default_rng([77, step])
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

    def loss_of(step: int) -> dict[str, torch.Tensor]:
        images = crops(pools, step).to(device)
        with torch.autocast(device, torch.bfloat16):
            latents = model.encoder(images)
            decoded = model.decoder(latents + LATENT_NOISE * torch.randn_like(latents))
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
