"""Memory and time of `codi base add` for a model of SD 1.5's size with random weights: `python -m benchmarks.adding`.

Memory is the peak of resident memory above that of the imports, which includes the pages of mapped files. Time is
compared with reading the same files; both start with files that are not in the page cache, and without the imports.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parents[1] / "codi_hub/backbones/configs"
PIECE = 1 << 22  # bytes read at a time


def write_model(folder: Path, like: str, dtype: str) -> None:
    """Write a diffusers folder of random weights with the bundled configs of a model."""
    import torch
    from safetensors.torch import save_file

    from codi_hub.backbones.parts import _class, class_of

    shutil.copytree(CONFIGS / like, folder)
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text())
        model_class: Any = _class(class_of(config))
        with torch.device("meta"):
            diffusers = "_class_name" in config
            built = model_class.from_config(config) if diffusers else model_class(model_class.config_class(**config))
        tensors = {}
        for name, value in built.state_dict().items():
            scale = 1.0 if value.ndim == 1 and name.endswith("weight") else 0.02
            random = torch.randn(value.shape) * scale if value.is_floating_point() else torch.zeros(value.shape)
            tensors[name] = random.to(getattr(torch, dtype) if value.is_floating_point() else value.dtype)
        name = "diffusion_pytorch_model" if diffusers else "model"
        save_file(tensors, path.parent / f"{name}.safetensors", metadata={"format": "pt"})


def forget(folder: Path) -> list[Path]:
    """Drop a folder's weight files from the page cache; return them."""
    files = sorted(folder.glob("*/*.safetensors"))
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    return files


def read_all(files: list[Path]) -> float:
    """Return the seconds that reading the files takes."""
    buffer, start = bytearray(PIECE), time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - start


def resident(entry: str) -> int:
    """Return an entry of this process's memory in bytes, such as VmHWM, its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(entry)) * 1024


def add(folder: Path, home: Path) -> dict[str, float]:
    """Add the base in this process; return the seconds, and the bytes before and at the peak."""
    import diffusers
    import transformers

    from codi_hub.backbones import FAMILIES, probe  # noqa: F401
    from codi_hub.catalog import Catalog

    [*FAMILIES.loadable()]
    names = ("StableDiffusionPipeline", "UNet2DConditionModel", "AutoencoderKL", "DDIMScheduler", "PNDMScheduler")
    [getattr(diffusers, name) for name in names]
    [getattr(transformers, name) for name in ("CLIPTextModel", "CLIPTokenizer")]
    with Catalog.open(home) as catalog:
        catalog.bases()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
        before, start = resident("VmRSS"), time.perf_counter()
        catalog.add_base("large", folder)
        return {"seconds": time.perf_counter() - start, "before": before, "peak": resident("VmHWM")}


def main() -> None:
    """Print one line per run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--like", default="sd15")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--child", nargs=2, type=Path)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(add(*arguments.child)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        write_model(folder, arguments.like, arguments.dtype)
        for number in range(arguments.runs):
            reading = read_all(files := forget(folder))
            forget(folder)
            command = [sys.executable, "-m", "benchmarks.adding", "--child", str(folder), f"{temporary}/home{number}"]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            largest, total = max(path.stat().st_size for path in files), sum(path.stat().st_size for path in files)
            extra = found["peak"] - found["before"]
            times = f"read in {reading:.1f} s, added in {found['seconds']:.1f} s ({found['seconds'] / reading:.2f} x)"
            memory = (
                f"{extra / 1e9:.2f} GB above {found['before'] / 1e9:.2f} ({extra / largest:.2f} x the largest file)"
            )
            print(f"{total / 1e9:.2f} GB in {len(files)} files: {times}; memory {memory}")


if __name__ == "__main__":
    main()
