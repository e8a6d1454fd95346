"""The frozen base: a latent diffusion model in diffusers' Stable Diffusion layout, loaded once, never changed."""

import hashlib
import json
import math
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from codi_hub.diffusion.schedule import Schedule
from codi_hub.errors import InvalidInput, Mismatch, NotFound, one_line

Features = list[Tensor]
PROMPT_CACHE = 512  # prompt embeddings kept, by text
# Pixels. Four times as many take Stable Diffusion's decoder 0.45 GB, and a CPU a tenth longer: blocks over 32 MB are
# given back to the system, and all their pages fetched from it, at every layer.
DECODED_TOGETHER = 1 << 16
SKETCHED = ("conv_in.weight", "time_embedding.linear_1.weight", "mid_block.resnets.0.conv1.weight", "conv_out.weight")
SKETCH_TOLERANCE = 0.02  # a 16-bit copy stays below 0.004; a fine-tune of a few hundred steps lies above


def local_folder(source: str) -> Path:
    """The folder of a base: `source` itself, or the hub snapshot of that id, downloaded if need be.

    Raises:
        NotFound: neither a diffusers folder nor a hub id that can be reached.
    """
    path = Path(source).expanduser()
    if (path / "unet" / "config.json").is_file():
        return path
    if path.exists():
        raise NotFound(f"{source}: not a diffusers model folder (unet/config.json is missing)")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(source, allow_patterns=["*.json", "*.txt", "*.safetensors"]))
    except Exception as error:  # noqa: BLE001 - the hub client raises a dozen unrelated kinds; all mean "cannot be had"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NotFound(
            f"base {source!r} is neither a folder here nor a model that the hub could give: {reason}"
        ) from None


@dataclass(frozen=True)
class Fingerprint:
    """What tells one base from another: `family` hashes its architecture, `sketch` its weights, coarsely."""

    family: str
    sketch: dict[str, list[float]]

    def check(self, family: str, sketch: dict[str, list[float]] | None, *, allow_fine_tune: bool = False) -> None:
        """Compares an adapter's record of its base with this base.

        Raises:
            Mismatch: another family, or another fine-tune of it unless `allow_fine_tune`.
        """
        if family != self.family:
            raise Mismatch(
                f"the adapter was distilled for a base of family {family}, this base is of family {self.family}: "
                "choose the base it belongs to with --base, or distil the task again on this one"
            )
        if sketch and not allow_fine_tune and (distance := sketch_distance(self.sketch, sketch)) > SKETCH_TOLERANCE:
            raise Mismatch(
                f"the adapter was distilled on other weights of the same family {family} (distance {distance:.3f}, "
                f"allowed {SKETCH_TOLERANCE}): add --allow-base-mismatch to use it all the same"
            )


def sketch_distance(mine: dict[str, list[float]], theirs: dict[str, list[float]]) -> float:
    """Largest relative distance between two sketches, over the tensors both have; infinite if not comparable."""
    distances = [0.0]
    for name in mine.keys() & theirs.keys():
        a, b = torch.tensor(mine[name]), torch.tensor(theirs[name])
        if a.shape != b.shape or not b.isfinite().all():
            return math.inf
        distances.append(((a - b).norm() / a.norm().clamp(min=1e-12)).item())
    return max(distances)


def fingerprint(unet: nn.Module, schedule: Schedule, scaling_factor: float) -> Fingerprint:
    """The two-part fingerprint of a base (DESIGN: family hash and sketch). The autoencoder's decoder is left out."""
    shapes = sorted((name, tuple(value.shape)) for name, value in unet.state_dict().items())
    noise = [round(value, 5) for value in schedule.alphas[:: max(1, len(schedule) // 20)].tolist()]
    text = json.dumps([shapes, schedule.prediction_type, noise, round(scaling_factor, 4)])
    sketch = {}
    weights = dict(unet.named_parameters())
    for name in SKETCHED:
        if name in weights:
            flat = weights[name].detach().float().cpu().flatten()
            directions = torch.randn(16, len(flat), generator=torch.Generator().manual_seed(len(flat)))
            sketch[name] = [round(value, 5) for value in (directions @ flat / flat.numel() ** 0.5).tolist()]
    return Fingerprint(hashlib.sha256(text.encode()).hexdigest()[:16], sketch)


class FrozenBase(nn.Module):
    """U-Net, autoencoder, text encoder and schedule of a base, in evaluation mode and without gradients.

    Attributes:
        schedule: alpha_t, sigma_t and the prediction type.
        factor: pixels per latent cell along a side.
        multiple: sides of pictures must be multiples of this many pixels.
    """

    def __init__(self, unet: Any, vae: Any, text_encoder: Any, tokenizer: Any, scheduler_config: dict[str, Any]):
        super().__init__()
        check_supported(unet.config)
        self.unet, self.vae, self.text_encoder = unet, vae, text_encoder
        self.tokenizer = tokenizer
        self.schedule = Schedule.from_config(scheduler_config)
        levels = vae.config.get("block_out_channels") or vae.config.encoder_block_out_channels
        self.factor = 2 ** (len(levels) - 1)
        self.multiple = self.factor * 2 ** (len(unet.config.block_out_channels) - 1)
        self.scaling_factor = float(vae.config.scaling_factor)
        self.shift_factor = float(vae.config.get("shift_factor") or 0.0)
        self._prompts: OrderedDict[str, Tensor] = OrderedDict()
        self.requires_grad_(False).eval()
        self.fingerprint = fingerprint(unet, self.schedule, self.scaling_factor)

    @classmethod
    def load(
        cls, source: str, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> "FrozenBase":
        """Loads a diffusers folder or hub id.

        Raises:
            NotFound, InvalidInput, Mismatch: it is not there, is damaged, or is not of the Stable Diffusion kind.
        """
        folder = local_folder(source)
        with _quiet():
            return cls._load(folder, source, torch.device(device), dtype)

    @classmethod
    def _load(cls, folder: Path, source: str, device: torch.device, dtype: torch.dtype) -> "FrozenBase":
        from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        try:
            kind = json.loads((folder / "vae" / "config.json").read_text()).get("_class_name", "AutoencoderKL")
            autoencoder = AutoencoderTiny if kind == "AutoencoderTiny" else AutoencoderKL
            options = {"torch_dtype": dtype, "use_safetensors": True, "low_cpu_mem_usage": True}
            unet = UNet2DConditionModel.from_pretrained(folder / "unet", **options)
            vae = autoencoder.from_pretrained(folder / "vae", **options)
            text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=dtype, use_safetensors=True)
            tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
            scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise InvalidInput(f"base {source}: cannot be loaded: {one_line(error, 200)}") from error
        base = cls(unet, vae, text_encoder, tokenizer, scheduler).to(device)
        return base.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def device(self) -> torch.device:
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.conv_in.weight.dtype

    def encode(self, images: Tensor) -> Tensor:
        """Images in [0, 1], (B, 3, H, W) -> float32 latents of unit deviation, (B, C, H/f, W/f)."""
        encoded = self.vae.encode((2 * images - 1).to(self.device, self.dtype))
        latents = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
        return (latents.float() - self.shift_factor) * self.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Latents of unit deviation -> float32 images in [0, 1], (B, 3, H, W); as many at once as the memory bears."""
        z = (latents / self.scaling_factor + self.shift_factor).to(self.dtype)
        together = max(1, DECODED_TOGETHER // (self.factor**2 * z[0, 0].numel()))
        images = [self.vae.decode(part).sample for part in z.split(together)]
        return (torch.cat(images).float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def embed(self, prompts: list[str]) -> Tensor:
        """Prompt embeddings (B, tokens, width); each text is encoded once while it stays in the cache."""
        missing = [text for text in dict.fromkeys(prompts) if text not in self._prompts]
        for start in range(0, len(missing), 64):
            texts = missing[start : start + 64]
            length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
            tokens = self.tokenizer(
                texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
            )
            rows = self.text_encoder(tokens.input_ids.to(self.device))[0]
            self._prompts.update(zip(texts, rows, strict=True))
        embedded = torch.stack([self._prompts[text] for text in prompts])
        while len(self._prompts) > PROMPT_CACHE:
            self._prompts.popitem(last=False)
        return embedded

    def features(self, z_t: Tensor, t: Tensor, prompt: Tensor) -> tuple[Tensor, Features]:
        """Time embedding and features of the frozen encoder half; nothing in it is trained, so no gradient is kept."""
        with torch.no_grad():
            return encode_features(self.unet, z_t, t, prompt)

    def finish(self, emb: Tensor, features: Features, prompt: Tensor) -> Tensor:
        """The decoder half: what the network predicts, from (possibly fused) features."""
        return decode_features(self.unet, emb, features, prompt)


def encode_features(
    net: Any, z_t: Tensor, t: Tensor, prompt: Tensor, added: Tensor | float = 0.0
) -> tuple[Tensor, Features]:
    """Runs an encoder half: the U-Net's own, or a conditional encoder built like it.

    Args:
        net: has conv_in, time_proj, time_embedding, down_blocks and mid_block.
        z_t, t, prompt: (B, C, h, w) latents, (B,) timesteps, (B, tokens, width) embeddings.
        added: added after conv_in; a conditional encoder's view of its condition.

    Returns:
        the embedding of the time and, in networks that have one, of the text as a whole; and the features
        to be fused: of conv_in, of every layer on the way down, of the middle.
    """
    emb = net.time_embedding(net.time_proj(t.expand(len(z_t))).to(z_t.dtype))
    if hasattr(net, "add_embedding"):  # config: addition_embed_type="text"
        emb = emb + net.add_embedding(prompt)
    return emb, descend(net, emb, net.conv_in(z_t) + added, prompt)


def descend(net: Any, emb: Tensor, hidden: Tensor, prompt: Tensor | None) -> Features:
    """The features of an encoder half from what its first layer gave; `prompt` is None where nothing attends to it."""
    features = [hidden]
    for block in net.down_blocks:
        text = {"encoder_hidden_states": prompt} if getattr(block, "has_cross_attention", False) else {}
        hidden, more = block(hidden_states=hidden, temb=emb, **text)
        features += more
    text = {"encoder_hidden_states": prompt} if getattr(net.mid_block, "has_cross_attention", False) else {}
    return [*features, net.mid_block(hidden, emb, **text)]


def decode_features(net: Any, emb: Tensor, features: Features, prompt: Tensor) -> Tensor:
    """Runs the decoder half of a U-Net on what `encode_features` gave, possibly fused: (B, C, h, w)."""
    *left, hidden = features
    for block in net.up_blocks:
        count = len(block.resnets)
        taken, left = tuple(left[-count:]), left[:-count]
        text = {"encoder_hidden_states": prompt} if getattr(block, "has_cross_attention", False) else {}
        size = left[-1].shape[2:] if left else None
        hidden = block(hidden_states=hidden, temb=emb, res_hidden_states_tuple=taken, upsample_size=size, **text)
    return net.conv_out(net.conv_act(net.conv_norm_out(hidden)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the libraries' progress bars and remarks on unused config entries while a model is loaded."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [library.get_verbosity() for library in libraries]
    bars = transformers_logging.is_progress_bar_enabled()
    for library in libraries:
        library.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        for library, verbosity in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def check_supported(config: Any) -> None:
    """Refuses U-Nets that want inputs a Stable-Diffusion-style model does not have.

    Raises:
        Mismatch: naming the config entry.
    """
    for name in (
        "addition_embed_type",
        "class_embed_type",
        "encoder_hid_dim_type",
        "time_embedding_act_fn",
        "timestep_post_act",
    ):
        if config.get(name) and (name, config[name]) != ("addition_embed_type", "text"):
            raise Mismatch(
                f"this U-Net has {name}={config[name]!r}: only Stable-Diffusion-style models (SD 1.x and 2.x) work here"
            )
    if config.get("center_input_sample") or config.get("time_cond_proj_dim"):
        raise Mismatch(
            "this U-Net rescales its input or takes a guidance embedding: only plain text-conditioned ones work here"
        )
