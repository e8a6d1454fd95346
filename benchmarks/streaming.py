"""Peak memory of encoding a tar of pairs into the cache: `python -m benchmarks.streaming [PAIRS ...]`.

Each number of pairs is measured in a process of its own, which opens the tar, encodes every pair on nano and reads
some of them back.
"""

from __future__ import annotations

import argparse
import io
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

COUNTS = (1_000, 50_000)
SIZE = 32  # px
TOGETHER = 1000  # pairs that are asked for at a time


def main() -> None:
    """Print a line for each number of pairs; with `--of`, encode that tar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", nargs="*", type=int, help="numbers of pairs (default: 1000 50000)")
    parser.add_argument("--of", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.of:
        encode(given.of, *given.pairs)
        return
    for count in given.pairs or COUNTS:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder) / "pairs.tar", count)
            command = [sys.executable, "-m", "benchmarks.streaming", str(count), "--of", f"{folder}/pairs.tar"]
            subprocess.run(command, check=True)


def write(path: Path, count: int) -> None:
    """Write a tar of images, each of its own content."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for k in range(count):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(file, "PNG", compress_level=0)
            member = tarfile.TarInfo(f"{k:07}.png")
            member.size = file.tell()
            file.seek(0)
            tar.addfile(member, file)


def encode(path: Path, count: int) -> None:
    """Encode all pairs of a tar and print the peak of the memory."""
    import torch

    from benchmarks.bases import NANO
    from codi_hub import backbones
    from codi_hub.training.latents import PairFile
    from codi_hub.training.pairs import PairsSpec

    base = backbones.load(str(NANO / "base"))
    began = time.perf_counter()
    spec = PairsSpec("superres", {"scale": 2}, str(path), None, SIZE, 0)
    pairs = PairFile(spec, range(count), base, path.parent / "cache", workers=1)
    for first in range(0, count, TOGETHER):
        pairs.prepare(range(first, min(count, first + TOGETHER)))
        pairs.rows(torch.arange(first, min(count, first + 16)))
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{count} pairs of {SIZE} px: peak {peak:.0f} MiB, {count / seconds:.0f} pairs/s", flush=True)


if __name__ == "__main__":
    main()
