"""Run `make demo`: degrade four photographs, super-resolve them with the command line, and compare on a sheet.

Writes build/demo/input (a quarter of the size, blurred, noisy, JPEG), build/demo/output and build/demo/sheet.png.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from codi_hub.data.photographs import Photograph, photographs
from codi_hub.images.metrics import gmsd, psnr
from codi_hub.images.sheets import contact_sheet
from codi_hub.tasks.superres import Degradation, degraded

OUT = Path("build") / "demo"
SCALE = 4
DEGRADATION = Degradation(blur=1.3, noise=6.0, jpeg=72)
STEPS = "4"


def main() -> int:
    """Return the exit status of the command."""
    photos = photographs(count=4)
    shutil.rmtree(OUT, ignore_errors=True)
    (OUT / "input").mkdir(parents=True)
    for photo in photos:
        Image.fromarray(degraded(photo, SCALE, DEGRADATION, seed=0)).save(OUT / "input" / f"{photo.name}.png")
    print(
        f"Wrote {len(photos)} photographs to {OUT / 'input'}: 1/{SCALE} of the size, blurred, noisy, JPEG", flush=True
    )

    command = ["run", "superres", str(OUT / "input"), "-o", str(OUT / "output"), "--steps", STEPS]
    print(f"$ codi {' '.join(command)}", flush=True)
    if code := subprocess.run([sys.executable, "-m", "codi_hub.cli", *command], check=False).returncode:
        return code

    rows = [_row(photo) for photo in photos]
    labels = [_label(photo, *row) for photo, row in zip(photos, rows, strict=True)]
    columns = ("bicubic", f"codi run superres --steps {STEPS}", "original")
    contact_sheet(rows, columns=columns, labels=labels, width=384).save(OUT / "sheet.png")
    print("\n".join(labels))
    print(f"Outputs: {OUT / 'output'}\nComparison: {OUT / 'sheet.png'}")
    return 0


def _row(photo: Photograph) -> list[np.ndarray]:
    """Return bicubic, output and original, each uint8 (H, W, 3)."""
    size = photo.image.shape[1::-1]
    before, after = (Image.open(OUT / folder / f"{photo.name}.png").convert("RGB") for folder in ("input", "output"))
    return [np.asarray(before.resize(size, Image.Resampling.BICUBIC)), np.asarray(after), photo.image]


def _label(photo: Photograph, bicubic: np.ndarray, ours: np.ndarray, original: np.ndarray) -> str:
    figures = [f"{psnr(image, original):.2f} dB, GMSD {gmsd(image, original):.3f}" for image in (bicubic, ours)]
    return f"{photo.name}: bicubic {figures[0]}; ours {figures[1]}"


if __name__ == "__main__":
    sys.exit(main())
