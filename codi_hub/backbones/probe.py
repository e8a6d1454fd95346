"""A trial of a base before it is registered: its parts fit together, and its network computes what diffusers' does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.values import Prompt
from codi_hub.errors import CodiError, Mismatch, describe

PROMPT = "a photograph of a red ball on a table"
CELLS = 8  # least side of the network's latent
ENCODED_CELLS = 2  # side of the autoencoder's
TIME = 0.5
TOLERANCE = 1e-3  # share of the prediction's deviation
REMEDY = "use a plain text-to-image model that diffusers' pipeline of this family runs"


@torch.no_grad()
def probe(base: Backbone, *, release: bool = False) -> None:
    """Try a base on one small latent, in float32, whatever its weights are stored in.

    The autoencoder's latents must be what the network takes, the text encoders' output must fit, and `predict` must
    agree with the network's own forward pass.

    Args:
        base: the base, on any device.
        release: let the autoencoder and the text encoders go when they have been tried, but for their part of the
            fingerprint: the base is of no use then.

    Raises:
        Mismatch: it cannot be used; says what differs.
    """
    with _in_float32(base):
        _try_autoencoder(base)
        with _named("the text encoder"):
            prompt = base.embed([PROMPT])
        for name, value in prompt.tensors.items():
            _finite(value, f"its text encoder makes ({name})")
        if release:
            assert base.outer_sketch is not None
            for module in (getattr(base, "vae", None), *base.text_modules()):
                if module is not None:
                    module.to("meta")
        _try_network(base, prompt)


def _try_autoencoder(base: Backbone) -> None:
    spec, side = base.latents, ENCODED_CELLS * base.latents.factor
    with _named("the autoencoder"):
        latents = base.encode(torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)))
        decoded = base.decode(latents)
    made = (1, spec.channels, ENCODED_CELLS, ENCODED_CELLS)
    _same_shape(latents, made, "latents of its autoencoder", f"an image of {side} px")
    _same_shape(decoded, (1, 3, side, side), "images of its autoencoder", f"an image of {side} px")
    _finite(latents, "its autoencoder encodes")
    _finite(decoded, "its autoencoder decodes")


def _try_network(base: Backbone, prompt: Prompt) -> None:
    spec = base.latents
    cells = -(-CELLS * spec.factor // spec.multiple) * spec.multiple // spec.factor
    z_t = torch.randn(1, spec.channels, cells, cells, generator=torch.Generator().manual_seed(1)).to(base.device)
    t = torch.tensor([TIME], device=base.device)
    with _named("the network's own forward pass"):
        expected = base.own_prediction(z_t, t, prompt)
    _same_shape(expected, tuple(z_t.shape), "predictions of its network", "its latents")
    _finite(expected, "its network predicts")
    with _named("the network, taken apart"):
        found = base.predict(z_t, t, prompt)
    difference = ((found - expected).abs().max() / expected.std().clamp(min=1e-6)).item()
    if not difference <= TOLERANCE:
        raise Mismatch(
            f"a trial prediction of its network differs from diffusers' own by {difference:.2g} of its deviation: it "
            f"has a part that family {base.family} does not know; {REMEDY}"
        )


@contextmanager
def _in_float32(module: nn.Module) -> Iterator[None]:
    """Compute every layer with weights of its own in float32, for as long as it runs; and once for equal inputs.

    So a network in 16 bit takes little more memory than its weights, and a CPU without half precision is fast enough.
    """
    halved = [value.numel() for value in module.parameters() if value.dtype in (torch.float16, torch.bfloat16)]
    scratch = torch.empty(max(halved, default=0), device=next(module.parameters()).device)  # of one layer's weight
    with ExitStack() as stack:
        for layer in module.modules():
            if layer._parameters:
                own, layer.forward = layer.__dict__.get("forward"), _wrapped(layer, scratch)
                stack.callback(_restore, layer, own)
        yield


def _restore(layer: nn.Module, own: Any) -> None:
    del layer.forward
    if own is not None:
        layer.forward = own


def _wrapped(layer: nn.Module, scratch: Tensor) -> Callable[..., Any]:
    forward, seen = layer.forward, []  # type: ignore[var-annotated]

    def compute(*args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, nn.Embedding):
            return _wide(forward(*args, **kwargs))  # a large table, of which little is read
        given: tuple[Any, ...] = (*map(_wide, args), *map(_wide, kwargs.values()))
        if seen and not layer._modules and _equal(seen[0], given):
            return seen[1]
        weights = dict(layer._parameters)
        try:
            layer._parameters.update({name: _wide(value) for name, value in weights.items() if name != "weight"})
            if (weight := weights.get("weight")) is not None:
                layer._parameters["weight"] = _widened(weight, None if layer._modules else scratch)
            made = forward(*given[: len(args)], **dict(zip(kwargs, given[len(args) :], strict=True)))
        finally:
            layer._parameters.update(weights)
        seen[:] = given, made
        return made

    return compute


def _wide(value: Any) -> Any:
    return value.float() if type(value) in (Tensor, nn.Parameter) and value.is_floating_point() else value


def _widened(weight: Tensor, scratch: Tensor | None) -> Any:
    """Return a weight in float32, in `scratch` if it is given."""
    if scratch is None or weight.dtype not in (torch.float16, torch.bfloat16):
        return _wide(weight)
    return scratch[: weight.numel()].view(weight.shape).copy_(weight)


def _equal(one: Sequence[Any], other: Sequence[Any]) -> bool:
    if len(one) != len(other) or not all(isinstance(value, Tensor) for value in (*one, *other)):
        return False
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one, other, strict=True))


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
    if tuple(found.shape) != expected:
        raise Mismatch(
            f"{what} have the shape {tuple(found.shape[1:])}, and {of} needs {expected[1:]}: its parts do not belong "
            f"together; {REMEDY}"
        )


def _finite(values: Tensor, what: str) -> None:
    if not values.isfinite().all():
        raise Mismatch(f"what {what} is not finite: its weights are damaged, use another copy of the model")
