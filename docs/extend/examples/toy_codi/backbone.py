"""A model family: a small convolutional flow model on pixels, in a folder with one weight file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from codi_hub.backbones.backbone import Backbone, LatentSpec, Prompt, Residuals
from codi_hub.backbones.fingerprint import Fingerprint, family_hash
from codi_hub.backbones.parts import ModelFiles
from codi_hub.diffusion.schedule import RectifiedFlow

CONFIG, WEIGHTS = "toy.json", "toy.safetensors"


class ToyBackbone(Backbone):
    """Three colour channels as latents, velocity prediction, prompts without effect."""

    family = "toy"

    def __init__(self, width: int, weights: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(4, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1))
        if weights:
            self.net.load_state_dict(weights)
        self.requires_grad_(False).eval()
        self.schedule = RectifiedFlow()
        self.latents = LatentSpec(channels=3, factor=1, multiple=1, native_size=32)
        shapes = [(name, tuple(value.shape)) for name, value in self.net.state_dict().items()]
        family = family_hash(shapes, self.schedule.prediction_type)
        self.fingerprint = Fingerprint.of(family, self.net, text_encoders=[], autoencoder=None)

    @classmethod
    def matches(cls, files: ModelFiles) -> bool:
        """Whether a model is of this family."""
        return (files.folder / CONFIG).is_file()

    @classmethod
    def load(cls, files: ModelFiles, dtype: torch.dtype) -> Self:
        """Load a folder that `save` wrote. A family of diffusers has no need of this: it is loaded by `components`."""
        width = json.loads((files.folder / CONFIG).read_text())["width"]
        return cls(width, load_file(files.folder / WEIGHTS)).to(dtype)

    def save(self, folder: Path) -> None:
        """Write a folder that `load` reads."""
        folder.mkdir(parents=True)
        (folder / CONFIG).write_text(json.dumps({"width": self.net[0].out_channels}))
        save_file(self.net.state_dict(), folder / WEIGHTS)

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.net[0].weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self.net[0].weight.dtype

    def latents_digest(self) -> str:
        """Return a digest of what decides the latents, for caches of encoded pairs; here it is fixed."""
        return "toy"

    def embed_texts(self, texts: Sequence[str]) -> Prompt:
        """Return an empty context: this model reads no text."""
        return Prompt({"context": torch.zeros(len(texts), 1, 1, device=self.device, dtype=self.dtype)})

    def encode(self, images: Tensor) -> Tensor:
        """Map [0, 1] to about unit variance."""
        return (images.float().to(self.device) - 0.5) * 4

    def decode(self, latents: Tensor) -> Tensor:
        """Invert `encode`."""
        return (latents.float() / 4 + 0.5).clamp(0, 1)

    def predict(
        self,
        z_t: Tensor,
        t: Tensor,
        prompt: Prompt,
        *,
        residuals: Residuals | None = None,
        state: Any = None,
        concat: Tensor | None = None,
        network: Any = None,
    ) -> Tensor:
        """Return the velocity at z_t, plus the residual `output`."""
        time = t.to(z_t).view(-1, 1, 1, 1).expand(-1, 1, *z_t.shape[2:])
        velocity = self.net(torch.cat([z_t, time], 1))
        return velocity + residuals["output"] if residuals is not None and "output" in residuals else velocity

    def controlnet(
        self, condition_channels: int, *, pretrained: bool = True, device: torch.device | None = None
    ) -> nn.Module:
        """Refuse: diffusers has no ControlNet class for this family."""
        raise NotImplementedError("the toy family has no ControlNet")
