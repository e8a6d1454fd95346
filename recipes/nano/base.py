"""The text-conditioned U-Net of nano: v-prediction with zero terminal SNR, on cached latents of all images."""

import json
import re
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from codi_hub.data.synthetic.scenes_words import EDITS, TIME_EDITS
from codi_hub.diffusion.schedule import Schedule, VariancePreserving
from recipes.nano import bundle
from recipes.nano.images import Images
from recipes.nano.kernels import attention, replace_group_norms, training_precision
from recipes.nano.stage import train

BATCH = {"cpu": 16, "cuda": 256}  # whole scenes; twice as many crops
CROP = 24  # latent cells; crops of three quarters of an image train faster
# shares of the steps; scenes are whole and have captions, which keep the text encoder trained
SHARES = {"scenes": 0.5, "leaves": 0.5}
WITH_PHOTOGRAPHS = {"scenes": 0.25, "leaves": 0.15, "photographs": 0.6}
DROP_CAPTION = 0.15  # so that the empty prompt, which superres uses, is trained too
TOKENS = 32
LR = 1.2e-3
LR_FROM_START = 8e-4  # of trained weights: a peak as high as from random ones undoes much of them first


def tokenizer(captions: list[str], folder: Path) -> CLIPTokenizer:
    """Return a CLIP tokenizer whose vocabulary is the words of the captions, and letters for all others."""
    words = sorted({word for caption in captions for word in re.findall(r"[a-z]+", caption.lower())})
    letters = [chr(code) for code in range(33, 127)]
    pieces = letters + [letter + "</w>" for letter in letters]
    merges: dict[tuple[str, str], int] = {}
    for word in words:
        parts = _merged([*word[:-1], word[-1] + "</w>"], merges)
        while len(parts) > 1:  # new pairs come last, so that earlier words keep their tokens
            merges[parts[0], parts[1]] = len(merges)
            pieces.append(parts[0] + parts[1])
            parts = _merged(parts, merges)
    pieces = list(dict.fromkeys(["<|startoftext|>", "<|endoftext|>", *pieces]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({piece: k for k, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(f"{left} {right}" for left, right in merges) + "\n"
    )
    words_tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TOKENS)
    words_tokenizer.save_pretrained(folder)
    return words_tokenizer


def _merged(parts: list[str], merges: dict[tuple[str, str], int]) -> list[str]:
    """Return the byte-pair encoding of a word: the pair that is first among the merges is joined, repeatedly."""
    while pairs := [pair for pair in pairwise(parts) if pair in merges]:
        pair, joined = min(pairs, key=merges.__getitem__), list[str]()
        for part in parts:  # every occurrence of the pair, from the left
            if joined and (joined[-1], part) == pair:
                joined[-1] += part
            else:
                joined.append(part)
        parts = joined
    return parts


def scheduler() -> DDIMScheduler:
    """Return Stable Diffusion's schedule, rescaled to zero terminal SNR so that sampling starts from pure noise."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


class TextToLatent(nn.Module):
    """U-Net and text encoder, trained jointly."""

    def __init__(self, vocabulary: int, end: int, channels: int):
        super().__init__()
        self.text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary,
                hidden_size=128,
                intermediate_size=256,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=TOKENS,
                bos_token_id=0,
                eos_token_id=end,
                pad_token_id=end,
            )
        )
        # unit deviation, as large as what attention adds: with CLIP's 0.02, embeddings of captions that differ in a
        # colour were equal in bfloat16
        nn.init.normal_(self.text.get_input_embeddings().weight)
        # no self-attention: a network trained on 128 px then keeps its statistics on images of any size. Of four shapes
        # trained for equal time this one had the lowest loss, and it is 1.3 times as fast as (64, 128, 192)
        self.unet = UNet2DConditionModel(
            sample_size=32,
            in_channels=channels,
            out_channels=channels,
            down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2D",
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            block_out_channels=(64, 96, 128, 160),
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=4,
            cross_attention_dim=128,
            # the caption as a whole beside the time: properties of the whole image are then learned much sooner
            addition_embed_type="text",
            addition_embed_type_num_heads=8,
            only_cross_attention=True,
            use_linear_projection=True,
        )
        replace_group_norms(self.unet)

    def forward(self, z_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """Return the prediction at z_t, (B, C, h, w)."""
        return self.unet(z_t, t, self.text(tokens)[0]).sample


def instructions() -> list[str]:
    """Return the phrases of edit instructions: their words need tokens, although the base is not trained on them."""
    phrases = [*EDITS.values(), *TIME_EDITS.values()]
    return [phrase.replace("{}", "") for several in phrases for phrase in several]


@torch.no_grad()
def colour_distance(text: CLIPTextModel, words: CLIPTokenizer) -> float:
    """Return the distance of the embeddings of two captions that differ in a colour, relative to their norm."""
    ids = words(["a red box", "a green box"], padding="max_length", max_length=TOKENS, return_tensors="pt").input_ids
    first, second = text(ids.to(text.device))[0].flatten(1)
    return float((first - second).norm() / first.norm())


def encode(vae: AutoencoderTiny, images: np.ndarray, device: str) -> Tensor:
    """Encode uint8 images (N, H, W, 3) to float16 latents (N, C, H/4, W/4) of unit deviation.

    In float32: on a CPU, bfloat16 takes 8 times as long here, and is 0.05 off.
    """
    rows = []
    for start in range(0, len(images), 32):
        pixels = torch.from_numpy(np.array(images[start : start + 32])).permute(0, 3, 1, 2)
        with torch.no_grad():
            latents = vae.encoder(pixels.to(device).float().div(127.5).sub(1)) * vae.config.scaling_factor
        rows.append(latents.half().cpu())
    return torch.cat(rows)


def v_loss(predict: Callable[[Tensor, Tensor], Tensor], x: Tensor, schedule: Schedule, number: int) -> Tensor:
    """Return E ||v - predict(z_t, timestep)||^2 on clean latents (B, C, h, w), in `training_precision`.

    `number` seeds times and noise.
    """
    generator = torch.Generator().manual_seed(number)
    # stratified over the batch: the same distribution of noise levels at every step
    t = schedule.time_of((torch.arange(len(x)) + torch.rand((), generator=generator)) / len(x)).to(x.device)
    eps = torch.randn(x.shape, generator=generator).to(x.device, memory_format=torch.channels_last)
    with training_precision(x.device.type), attention(x, "bf16"):
        v = predict(schedule.add_noise(x, eps, t), schedule.model_time(t))
    return (v.float() - schedule.prediction(x, eps, t)).square().mean()


def cached_latents(vae: AutoencoderTiny, images: Images, path: Path, device: str) -> dict[str, Tensor]:
    """Return the latents of every kind of image that there is, from `path` where it has as many."""
    pools = {kind: pool for kind in WITH_PHOTOGRAPHS if len(pool := getattr(images, kind))}
    cache: dict[str, Tensor] = torch.load(path, weights_only=True) if path.exists() else {}
    if {kind: len(rows) for kind, rows in cache.items()} != {kind: len(pool) for kind, pool in pools.items()}:
        cache = {kind: encode(vae, pool, device) for kind, pool in pools.items()}
        torch.save(cache, path)
    return cache


def begin(folder: Path, images: Images, start: Path | None) -> tuple[TextToLatent, CLIPTokenizer, AutoencoderTiny]:
    """Return network, tokenizer and autoencoder at the start of a training, and write the latter two to `folder`.

    Args:
        folder: of the base; without `start` its autoencoder is trained already.
        images: whose captions the tokenizer is made from without `start`.
        start: folder of a base whose weights, tokenizer and autoencoder are taken over; None for random weights.
    """
    if start:
        for part in ("vae", "tokenizer"):
            shutil.copytree(start / part, folder / part, dirs_exist_ok=True)
        words = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    else:
        words = tokenizer([*images.captions, *instructions()], folder / "tokenizer")
    vae = AutoencoderTiny.from_pretrained(folder / "vae")
    torch.manual_seed(0)
    model = TextToLatent(len(words), words.eos_token_id, vae.config.latent_channels)
    if start:
        model.unet.load_state_dict(UNet2DConditionModel.from_pretrained(start / "unet").state_dict())
        model.text.load_state_dict(CLIPTextModel.from_pretrained(start / "text_encoder").state_dict())
    return model, words, vae


def run(workspace: Path, images: Images, minutes: float, device: str = "cpu", start: Path | None = None) -> Path:
    """Train within the budget and complete `workspace/base`, a diffusers pipeline folder; `start` as in `begin`."""
    folder = workspace / "base"
    model, words, vae = begin(folder, images, start)
    vae = vae.to(device, memory_format=torch.channels_last)
    latents = cached_latents(vae, images, workspace / "latents.pt", device)
    batch = BATCH[device]
    shares = WITH_PHOTOGRAPHS if "photographs" in latents else SHARES
    ids = words(
        [*images.captions, ""], padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
    ).input_ids
    model = model.to(device, memory_format=torch.channels_last)
    noise = scheduler()
    schedule = VariancePreserving.from_config(dict(noise.config))

    def loss_of(network: TextToLatent, number: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([78, number])
        kind = str(rng.choice(list(shares), p=list(shares.values())))
        source = latents[kind]
        rows = torch.from_numpy(rng.integers(0, len(source), batch if kind == "scenes" else 2 * batch))
        x, tokens = source[rows].float(), ids[-1].expand(len(rows), -1)
        if kind == "scenes":
            tokens = torch.where(torch.from_numpy(rng.random((len(rows), 1))) < DROP_CAPTION, tokens, ids[rows])
        else:
            top, left = rng.integers(0, x.shape[2] - CROP + 1, 2)
            x = x[:, :, top : top + CROP, left : left + CROP]
        if kind == "leaves" and rng.random() < 0.5:
            x = x.transpose(2, 3)
        x, tokens = x.to(device, memory_format=torch.channels_last), tokens.to(device)
        return {kind: v_loss(lambda z_t, t: network(z_t, t, tokens), x, schedule, number)}

    lr = LR_FROM_START if start else LR
    model.load_state_dict(train(workspace / "unet", model, loss_of, minutes=minutes, lr=lr, ema_decay=0.998))
    distance = colour_distance(model.text, words)
    print(f"relative distance of captions that differ in a colour: {distance:.3f}", flush=True)
    write(folder, model, vae, noise)
    weights = f"the weights of {'/'.join(start.resolve().parts[-2:])}" if start else "random weights"
    counts = {kind: len(rows) for kind, rows in latents.items()}
    (workspace / bundle.ORIGIN).write_text(json.dumps({"start": weights, "images": counts}) + "\n")
    return folder


def write(folder: Path, model: TextToLatent, vae: AutoencoderTiny, noise: DDIMScheduler) -> None:
    """Write a pipeline folder that diffusers opens, beside its tokenizer."""
    # the text encoder stays in 32 bit: transformers loads the stored dtype, diffusers float32, and the two must agree
    model.unet.half().save_pretrained(folder / "unet")
    model.text.float().save_pretrained(folder / "text_encoder")
    vae.half().save_pretrained(folder / "vae")
    noise.save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(PIPELINE, indent=1) + "\n")


PIPELINE = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderTiny"],
}
