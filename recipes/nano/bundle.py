"""Copy the finished models into `codi_hub/nano`, with their cards and the manifest that a registry reads."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import codi_hub
from codi_hub import backbones
from codi_hub.backbones.backbone import Backbone
from codi_hub.record import RECORD, read_record
from codi_hub.registry import Registry
from recipes.nano.kernels import precision

BASE = "nano"
ORIGIN = "unet/origin.json"  # in a workspace: what the base's training started from, and the images it used
NAME = "name"  # file in a workspace: the name of its base, where that is not `BASE`
ROOT = Path(codi_hub.__file__).parent / "nano"
DONE = "done"  # file in a run folder: the reference of the version that the run registered
FEATURES = "features"
MANIFEST = "manifest.json"
LIMIT = 60_000_000  # bytes, all bundled files together
CARD = """# {name}: a small text-to-image latent diffusion model

The frozen base that CoDi Hub bundles. A diffusers folder, loadable with `StableDiffusionPipeline.from_pretrained`.
`python -m recipes.nano` trained it from {start}. {photographs_used}

| part | network | parameters | training data | training |
|-|-|-|-|-|
| `vae` | AutoencoderTiny, f4, 12 channels: principal components | {vae:,} | {vae_training} |
| `unet` | UNet2DConditionModel, v-prediction, zero terminal SNR, no self-attention | {unet:,} | latents of {images}, \
96-128 px | {unet_steps:,} steps, {unet_minutes:.0f} minutes |
| `text_encoder` | CLIPTextModel, 2 layers, vocabulary {words} | {text:,} | the scenes' captions, with the U-Net | |

Hardware: {hardware}. Final losses: {losses}.

PSNR of photographs, none of them training data, through the autoencoder: {photographs}.

The training images show spheres, boxes, cones and cylinders on a ground, under a sky or before a wall, and abstract
shapes: no animals, no people, and no words but those of the captions. The model is small so that the method can be run
on two CPU cores.
{note}
"""


PHOTOGRAPHS = (
    "Crops of photographs were among the training data; the page on training data names the photographs, their authors "
    "and licences."
)


def run(workspace: Path, rounds: Mapping[str, int], note: str = "") -> None:
    """Replace the content of `codi_hub/nano`.

    Args:
        workspace: folder of the stages.
        rounds: number of trainings of each task's adapter. The last version is bundled, not the best: rounds on other
            sizes are scored on other images.
        note: further text for the base's card.

    Raises:
        ValueError: the files would exceed the limit.
    """
    shutil.rmtree(ROOT, ignore_errors=True)
    shutil.copytree(workspace / "base", ROOT / "base")
    _remove_paths(ROOT / "base")
    base = backbones.load(str(ROOT / "base"))
    (ROOT / "base" / "README.md").write_text(_card(workspace, base, note))
    mark = base.fingerprint
    entry = {
        "name": base_name(workspace),
        "path": "base",
        "family": mark.family,
        "sketch": mark.sketch,
        "files": _hashes(ROOT / "base"),
    }
    adapters = []
    with Registry.open(workspace / "home") as registry:
        for task, count in rounds.items():
            ref = (run_folder(workspace, task, count) / DONE).read_text()
            row = registry.adapters.resolve(ref, base=base_name(workspace))
            folder = ROOT / task
            folder.mkdir()
            for name in registry.adapters.files(row):
                shutil.copyfile(registry.adapters.file(row, name), folder / name)
            adapters.append(
                {
                    "task": task,
                    "version": 1,
                    "path": task,
                    "kind": row.kind,
                    "method": read_record(folder / RECORD).method,
                    "steps": row.steps,
                    "parameters": row.parameters,
                    "metrics": row.metrics,
                    "score": row.score,
                    "created": str(row.created),
                    "files": _sizes(folder),
                }
            )
    _write({"base": entry, "adapters": adapters})
    if (workspace / FEATURES).exists():
        add_features(workspace)
    size = sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file())
    if size > LIMIT:
        raise ValueError(f"the bundle has {size} bytes, the limit is {LIMIT}")
    print(f"{ROOT}: {size / 1e6:.1f} MB")


def base_name(workspace: Path) -> str:
    """Return the name under which the workspace's base is registered."""
    file = workspace / NAME
    return file.read_text() if file.exists() else BASE


def set_base_name(workspace: Path, name: str) -> None:
    """Name the workspace's base. Raises SystemExit where it is registered under another name already."""
    if (workspace / "home").exists() and base_name(workspace) != name:
        raise SystemExit(f"error: --name {name}: the base in {workspace} is registered as {base_name(workspace)}")
    workspace.mkdir(parents=True, exist_ok=True)
    (workspace / NAME).write_text(name)


def run_folder(workspace: Path, task: str, number: int) -> Path:
    """Return the run folder of a task's training by number, from 1."""
    return workspace / "runs" / (task if number == 1 else f"{task}-{number}")


def add_features(workspace: Path) -> None:
    """Copy the feature network of the evaluation into `codi_hub/nano`, replacing the one there, if any."""
    shutil.rmtree(ROOT / FEATURES, ignore_errors=True)
    shutil.copytree(workspace / FEATURES, ROOT / FEATURES)
    manifest = json.loads((ROOT / MANIFEST).read_text())
    manifest["others"] = [{"path": FEATURES, "files": _hashes(ROOT / FEATURES)}]
    _write(manifest)


def hash_again() -> None:
    """Update the hashes and sizes of the manifest after files were changed."""
    manifest = json.loads((ROOT / MANIFEST).read_text())
    manifest["base"]["files"] = _hashes(ROOT / manifest["base"]["path"])
    for adapter in manifest["adapters"]:
        adapter["files"] = _sizes(ROOT / adapter["path"])
    _write(manifest)


def _write(manifest: dict[str, Any]) -> None:
    (ROOT / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def _remove_paths(folder: Path) -> None:
    """Remove from every config.json the path that the part was loaded from."""
    for path in folder.rglob("config.json"):
        config = {key: value for key, value in json.loads(path.read_text()).items() if key != "_name_or_path"}
        path.write_text(json.dumps(config, indent=2) + "\n")


def _hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file by its relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _sizes(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the hash and size of every file by its name."""
    return {
        name: {"sha256": digest, "bytes": (folder / name).stat().st_size} for name, digest in _hashes(folder).items()
    }


def _card(workspace: Path, base: Backbone, note: str) -> str:
    logs = {stage: workspace / stage / "log.jsonl" for stage in ("autoencoder", "unet")}
    last: dict[str, dict[str, Any]] = {
        stage: json.loads(log.read_text().splitlines()[-1]) for stage, log in logs.items() if log.exists()
    }
    losses = {k: v for row in last.values() for k, v in row.items() if k not in ("step", "minutes")}
    origin = json.loads((workspace / ORIGIN).read_text())
    counts = origin["images"]
    vae_training = "that of the base it started from |"
    if row := last.get("autoencoder"):
        made = f"{counts['leaves']} dead-leaves images and {counts['scenes']} scenes, 64 px crops"
        vae_training = f"{made} | {row['step']:,} steps, {row['minutes']:.0f} minutes"
    return CARD.format(
        name=base_name(workspace),
        **{name: sum(p.numel() for p in getattr(base, part).parameters()) for name, part in PARTS.items()},
        start=origin["start"],
        photographs_used=PHOTOGRAPHS if counts.get("photographs") else "No photograph was among the training data.",
        vae_training=vae_training,
        images=", ".join(f"{count} {kind}" for kind, count in counts.items()),
        unet_steps=last["unet"]["step"],
        unet_minutes=last["unet"]["minutes"],
        words=len(base.tokenizers[0]),
        hardware=torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {precision('cpu')}",
        losses=", ".join(f"{name} {value:.4f}" for name, value in losses.items()),
        photographs=_reconstruction(base),
        note=f"\n{note}\n" if note else "",
    )


PARTS = {"vae": "vae", "unet": "unet", "text": "text_encoders"}


def _reconstruction(base: Backbone) -> str:
    """Return the PSNR of every test photograph through the autoencoder, as text."""
    from codi_hub.data.photographs import photographs
    from codi_hub.evaluation.run import round_trip
    from codi_hub.images.metrics import psnr

    figures = []
    for photo in photographs():
        image = photo.image.astype("float32") / 255
        figures.append(f"{photo.name} {psnr(round_trip(base, image), image):.1f} dB")
    return ", ".join(figures)
