"""A workflow in ComfyUI's API format, computed as ComfyUI documents its nodes: Euler steps along the sigmas."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.values import Residuals
from codi_hub.diffusion.schedule import VariancePreserving


class Workflow:
    """Runs the nodes of a workflow that ends in one SaveImage.

    Args:
        base: what CheckpointLoaderSimple loads.
        folder: where LoadImage and ControlNetLoader find their files.
        noise: of the seed, (1, C, h, w).
    """

    def __init__(self, base: Backbone, folder: Path, noise: Tensor) -> None:
        self.base, self.folder, self.noise = base, folder, noise

    def run(self, nodes: dict[str, Any]) -> np.ndarray:
        """Return the saved image, float32 (H, W, 3) in [0, 1]."""
        self.nodes = nodes
        (last,) = (name for name, node in nodes.items() if node["class_type"] == "SaveImage")
        with torch.no_grad():
            return self.output([nodes[last]["inputs"]["images"][0], 0])

    def output(self, link: Any) -> Any:
        """Return an input's value: that of a literal, or the numbered output of another node."""
        if not (isinstance(link, list) and len(link) == 2 and link[0] in self.nodes):
            return link
        node = self.nodes[link[0]]
        inputs = {name: self.output(value) for name, value in node["inputs"].items()}
        outputs = getattr(self, node["class_type"])(**inputs)
        return (outputs if isinstance(outputs, tuple) else (outputs,))[link[1]]

    def CheckpointLoaderSimple(self, ckpt_name: str) -> Any:
        return self.base, self.base, self.base

    def CLIPTextEncode(self, clip: Backbone, text: str) -> Any:
        return {"prompt": clip.embed([text])}

    def FluxGuidance(self, conditioning: Any, guidance: float) -> Any:
        assert guidance == self.base.guidance
        return conditioning

    def ModelSamplingDiscrete(self, model: Backbone, sampling: str, zsnr: bool) -> Backbone:
        assert model.schedule.prediction_type.startswith(sampling)
        assert zsnr == (model.schedule.alphas[-1] == 0)  # type: ignore[attr-defined]
        return model

    def ControlNetLoader(self, control_net_name: str) -> Any:
        net = self.base.controlnet(3, pretrained=False)
        tensors = load_file(self.folder / control_net_name)
        tensors.pop("pos_embed.pos_embed", None)  # SD3's table of positions, which is the base's
        net.load_state_dict(tensors, strict=True)
        return net.eval()

    def LoadImage(self, image: str) -> Tensor:
        pixels = np.asarray(Image.open(self.folder / image).convert("RGB"), np.float32) / 255
        return torch.from_numpy(pixels).permute(2, 0, 1)[None]

    def ControlNetApplyAdvanced(self, positive: Any, negative: Any, control_net: Any, image: Tensor, strength: float,
                                start_percent: float, end_percent: float, vae: Any = None) -> Any:  # fmt: skip
        assert (start_percent, end_percent) == (0, 1)
        assert (vae is None) == (self.base.network_name == "unet")
        further = {"net": control_net, "image": image, "strength": strength}
        return positive | further, negative | further

    def EmptyLatentImage(self, width: int, height: int, batch_size: int) -> Any:
        return [self.base.latents.size(height, width)] * batch_size

    EmptySD3LatentImage = EmptyLatentImage

    def KSamplerSelect(self, sampler_name: str) -> str:
        return sampler_name

    def ManualSigmas(self, sigmas: str) -> list[float]:
        return [float(word) for word in sigmas.split(",")]

    def SamplerCustom(self, model: Backbone, add_noise: bool, noise_seed: int, cfg: float, positive: Any,
                      negative: Any, sampler: str, sigmas: list[float], latent_image: Any) -> Tensor:  # fmt: skip
        assert (add_noise, sampler) == (True, "euler")
        assert latent_image == [tuple(self.noise.shape[2:])]
        table = isinstance(model.schedule, VariancePreserving)
        x = self.noise.double() * ((1 + sigmas[0] ** 2) ** 0.5 if table else sigmas[0])
        for sigma, following in pairwise(sigmas):
            image = self.denoised(x, sigma, positive)
            if cfg != 1:
                uncond = self.denoised(x, sigma, negative)
                image = uncond + cfg * (image - uncond)
            x = x + (x - image) / sigma * (following - sigma)
        return x

    def denoised(self, x: Tensor, sigma: float, positive: Any) -> Tensor:
        """Return the image that the network predicts, as ComfyUI's EPS, V_PREDICTION and CONST compute it."""
        schedule, scale = self.base.schedule, (1 + sigma**2) ** 0.5
        if not isinstance(schedule, VariancePreserving):
            return x - sigma * self.network(x, sigma, positive)
        ratios = schedule.sigmas / schedule.alphas.clamp(min=1e-4)
        t = schedule.time(int((ratios.log() - np.log(sigma)).abs().argmin()))
        out = self.network(x / scale, t, positive)
        return x - sigma * out if schedule.prediction_type == "epsilon" else x / scale**2 - out * sigma / scale

    def network(self, z_t: Tensor, t: float, positive: Any) -> Tensor:
        base, z_t, time = self.base, z_t.float(), torch.tensor([t])
        state = base.state(z_t, time, positive["prompt"])
        prepared = base.control_condition(positive["net"], positive["image"])
        added: Residuals = base.control_residuals(positive["net"], state, z_t, time, positive["prompt"], prepared)
        added = added.scaled(torch.tensor([positive["strength"]]))
        return base.predict(z_t, time, positive["prompt"], residuals=added, state=state).double()

    def VAEDecode(self, samples: Tensor, vae: Backbone) -> np.ndarray:
        return vae.decode(samples.float())[0].permute(1, 2, 0).numpy()
