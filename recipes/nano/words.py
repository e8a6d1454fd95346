"""Gives the base's words vectors that can be told apart, and adds those of instructions. The U-Net stays as it is.

Trained with the U-Net, the text encoder came to say little more than "a scene" or "no scene": what its attention adds
is two hundred times as long as a word's own vector, and in bfloat16 "a red box" and "a green box" came out alike. Here
every word gets a random vector long enough to be seen behind that, and these vectors alone are trained on, with the
diffusion loss. The vectors that mark a text's beginning and end stay, and with them everything that is computed for an
empty prompt, bit for bit.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.func import functional_call
from transformers import CLIPTextModel, CLIPTokenizer

from codi_hub.data.scenes_words import EDITS, TIME_EDITS
from codi_hub.schedule import Schedule
from recipes.nano.base import BATCH, TOKENS, scheduler, tokenizer, v_loss
from recipes.nano.stage import train

MARKS = 2  # rows of the vocabulary that stay: a text's beginning, and its end
DEVIATION = 5.0  # of a word's random vector, which is then half as long as what attention adds
EMBEDDING = "embeddings.token_embedding.weight"


class Words(nn.Module):
    """The vectors of all words, (vocabulary - MARKS, width)."""

    def __init__(self, count: int, width: int):
        super().__init__()
        self.rows = nn.Parameter(DEVIATION * torch.randn(count, width, generator=torch.Generator().manual_seed(0)))


def texts() -> list[str]:
    """What instructions are made of."""
    phrases = [*EDITS.values(), *TIME_EDITS.values()]
    return [phrase.replace("{}", "") for several in phrases for phrase in several]


def told_apart(text: CLIPTextModel, words: CLIPTokenizer) -> float:
    """How far apart two captions are that differ in a colour, relative to their length."""
    ids = words(["a red box", "a green box"], padding="max_length", max_length=TOKENS, return_tensors="pt").input_ids
    with torch.no_grad():
        first, second = text(ids.to(text.device))[0].flatten(1)
    return float((first - second).norm() / first.norm())


def run(workspace: Path, captions: list[str], minutes: float, device: str = "cpu") -> Path:
    """Trains within the budget and replaces tokenizer and text encoder of `workspace/base`."""
    folder = workspace / "base"
    text = CLIPTextModel.from_pretrained(folder / "text_encoder").to(device).requires_grad_(False).eval()
    words = tokenizer([*captions, *texts()], workspace / "words" / "tokenizer")
    text.resize_token_embeddings(len(words), mean_resizing=False)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    unet = unet.to(device, memory_format=torch.channels_last).requires_grad_(False)
    latents = torch.load(workspace / "latents.pt", weights_only=True)["scenes"]
    ids = words(captions, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt").input_ids
    name = next(name for name, _ in text.named_parameters() if name.endswith(EMBEDDING))
    marks = text.get_parameter(name)[:MARKS].clone()
    model = Words(len(words) - MARKS, marks.shape[1]).to(device)
    schedule = Schedule.from_config(dict(scheduler().config))

    def loss_of(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([81, step])
        rows = torch.from_numpy(rng.integers(0, len(latents), BATCH))
        x = latents[rows].float().to(device, memory_format=torch.channels_last)
        prompt = functional_call(text, {name: torch.cat([marks, model.rows])}, ids[rows].to(device))[0]
        return {"scenes": v_loss(lambda z_t, t: unet(z_t, t, prompt).sample, x, schedule)}

    kept = train(workspace / "words", model, loss_of, minutes=minutes, lr=0.05, ema_decay=0.99)
    with torch.no_grad():
        text.get_parameter(name)[MARKS:] = kept["rows"]
    print(f"two captions that differ in a colour are {told_apart(text, words):.3f} apart", flush=True)
    shutil.copytree(workspace / "words" / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    text.save_pretrained(folder / "text_encoder")
    return folder
