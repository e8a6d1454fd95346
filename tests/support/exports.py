"""The code in the README of an export, run as it stands."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from families import LONGEST

PROMPT = "a red ball"


def run_readme(
    folder: Path,
    base: Path,
    condition: Any,
    noise: torch.Tensor,
    *,
    prompt: str = PROMPT,
    prepare: Callable[[Any], object] = lambda pipe: None,
    strength: float = 1.0,
) -> np.ndarray:
    """Return the image that the README's code makes, float32 (H, W, 3) in [0, 1].

    The initial latents are given, and a text length that tiny tokenizers have.

    Args:
        folder: the export.
        base: folder of the model that it belongs to.
        condition: what the code calls `condition`.
        noise: initial latents, (1, C, h, w).
        prompt: what the code calls `prompt`.
        prepare: called with the pipeline before it runs.
        strength: in place of 1, in the argument that the README names.
    """
    text = (folder / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    setup, call = code.rsplit("image = ", 1)
    if strength != 1:
        assert call.count("controlnet_conditioning_scale=1.0") == 1
        call = call.replace("controlnet_conditioning_scale=1.0", f"controlnet_conditioning_scale={strength}")
    names: dict[str, Any] = {"FOLDER": str(folder), "BASE": str(base), "prompt": prompt, "condition": condition}
    exec(setup, names)
    prepare(names["pipe"])
    given: dict[str, Any] = {"output_type": "np", "latents": noise}
    if "sigmas" in call:
        given["max_sequence_length"] = LONGEST
    if "Flux" in code:
        given["latents"] = names["pipe"]._pack_latents(noise, *noise.shape)
    names["given"] = given
    exec("image = " + call.replace(").images", ", **given).images"), names)
    return names["image"]
