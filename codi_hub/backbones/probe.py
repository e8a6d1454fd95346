"""A trial of a base before it is registered: its parts fit together, and its network computes what diffusers' does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from codi_hub.backbones.backbone import Backbone
from codi_hub.errors import CodiError, Mismatch, describe

PROMPT = "a photograph of a red ball on a table"
CELLS = 8  # least side of the latent
TIMES = (1.0, 0.5)
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}  # share of the prediction's deviation
REMEDY = "use a plain text-to-image model that diffusers' pipeline of this family runs"


@torch.no_grad()
def probe(base: Backbone) -> None:
    """Try a base on one small latent.

    The autoencoder's latents must be what the network takes, the text encoders' output must fit, and `predict` must
    agree with the network's own forward pass.

    Raises:
        Mismatch: it cannot be used; says what differs.
    """
    spec = base.latents
    side = -(-CELLS * spec.factor // spec.multiple) * spec.multiple
    cells = side // spec.factor
    with _named("the autoencoder"):
        image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        latents = base.encode(image)
        _same_shape(latents, (1, spec.channels, cells, cells), "latents of its autoencoder", f"an image of {side} px")
        _finite(latents, "its autoencoder encodes", base)
        decoded = base.decode(latents)
        _same_shape(decoded, (1, 3, side, side), "images of its autoencoder", f"an image of {side} px")
        _finite(decoded, "its autoencoder decodes", base)
    with _named("the text encoder"):
        prompt = base.embed([PROMPT]).rows([0] * len(TIMES))
        for name, value in prompt.tensors.items():
            _finite(value, f"its text encoder makes ({name})", base)
    noise = torch.randn(len(TIMES), spec.channels, cells, cells, generator=torch.Generator().manual_seed(1))
    z_t, t = noise.to(base.device, base.dtype), torch.tensor(TIMES, device=base.device)
    with _named("the network's own forward pass"):
        expected = base.own_prediction(z_t, t, prompt)
        _same_shape(expected, z_t.shape, "predictions of its network", "its latents")
        _finite(expected, "its network predicts", base)
    with _named("the network, taken apart"):
        found = base.predict(z_t, t, prompt)
    difference = ((found.float() - expected.float()).abs().max() / expected.float().std().clamp(min=1e-6)).item()
    if not difference <= TOLERANCE.get(base.dtype, TOLERANCE[torch.bfloat16]):
        raise Mismatch(
            f"a trial prediction of its network differs from diffusers' own by {difference:.2g} of its deviation: it "
            f"has a part that family {base.family} does not know; {REMEDY}"
        )


@contextmanager
def _named(part: str) -> Iterator[None]:
    """Turn whatever a part raises into a Mismatch that names the part."""
    try:
        yield
    except CodiError:
        raise
    except Exception as error:  # diffusers and torch raise anything for inputs that they do not expect
        raise Mismatch(f"{part} fails in a trial evaluation ({describe(error)[:200]}); {REMEDY}") from error


def _same_shape(found: Tensor, expected: tuple[int, ...], what: str, of: str) -> None:
    if tuple(found.shape) != tuple(expected):
        raise Mismatch(
            f"{what} have the shape {tuple(found.shape[1:])}, and {of} needs {tuple(expected[1:])}: its parts do not "
            f"belong together; {REMEDY}"
        )


def _finite(values: Tensor, what: str, base: Backbone) -> None:
    if not values.isfinite().all():
        raise Mismatch(
            f"what {what} is not finite in {str(base.dtype).removeprefix('torch.')}: its weights are damaged, or "
            "overflow in this precision; use another copy of the model"
        )
