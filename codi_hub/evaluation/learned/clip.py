"""CLIP and DINO through transformers, from a local folder of weights: CMMD, CLIP-I, CLIP-T and DINO."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from codi_hub.errors import InvalidInput, NotFound, describe

BATCH = 16
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0  # Jayasumana et al., CVPR 2024, section 4


class Embedder:
    """A CLIP model, or any image model with a class token such as DINO's, and its preprocessing.

    Args:
        folder: of the weights as transformers saves them.

    Raises:
        NotFound, InvalidInput: no such folder, or no such model in it.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        from transformers import AutoModel, AutoTokenizer, BitImageProcessorPil, CLIPImageProcessorPil, CLIPModel

        if not folder.is_dir():
            raise NotFound(f"{folder}: no such folder; give one with a model of transformers and its preprocessing")
        try:
            self.model: Any = AutoModel.from_pretrained(folder, local_files_only=True).to(device).eval()
            processor = CLIPImageProcessorPil if isinstance(self.model, CLIPModel) else BitImageProcessorPil
            self.processor: Any = processor.from_pretrained(folder, local_files_only=True)
            self.is_clip = isinstance(self.model, CLIPModel)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True) if self.is_clip else None
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise InvalidInput(f"{folder}: no image model of transformers ({describe(error)})") from error
        self.device = device

    @torch.inference_mode()
    def images(self, images: Sequence[np.ndarray]) -> Tensor:
        """Return one vector of unit length per image, uint8 (H, W, 3): float32 (B, D)."""
        rows = []
        for start in range(0, len(images), BATCH):
            part = [Image.fromarray(image) for image in images[start : start + BATCH]]
            pixels = self.processor(images=part, return_tensors="pt")["pixel_values"].to(self.device)
            if self.is_clip:
                output = self.model.vision_model(pixel_values=pixels).pooler_output
                rows.append(self.model.visual_projection(output))
            else:
                rows.append(self.model(pixel_values=pixels).last_hidden_state[:, 0])
        return functional.normalize(torch.cat(rows).float(), dim=1)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return one vector of unit length per text, float32 (B, D); CLIP only."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self.device)
        output = self.model.text_model(**tokens).pooler_output
        return functional.normalize(self.model.text_projection(output).float(), dim=1)


def cmmd(a: Tensor, b: Tensor) -> float:
    """Return 1000 times the squared maximum mean discrepancy of two sets of unit vectors, (N, D) and (M, D).

    The kernel is exp(-|x - y|^2 / (2 * 10^2)); the estimate is the one with the diagonal, as in the authors' code.
    """

    def mean(x: Tensor, y: Tensor) -> float:
        return float(torch.exp(-torch.cdist(x.double(), y.double()).square() / (2 * CMMD_SIGMA**2)).mean())

    return CMMD_SCALE * (mean(a, a) + mean(b, b) - 2 * mean(a, b))
