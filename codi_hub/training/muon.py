"""Muon: steps of equal size in every direction of a weight, with which a training of minutes learns more."""

from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
ITERATIONS = 5
QUINTIC = 3.4445, -4.7750, 2.0315  # coefficients with which singular values soon lie about 1
RMS = 0.2  # of a step at learning rate 1, which is about AdamW's


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al., 2024) for weights that are matrices or convolutions, AdamW for all others.

    A step is the gradient's momentum with all its singular values made about 1, scaled to AdamW's size (Liu et al.,
    "Muon is scalable for LLM training", 2025), so that learning rate and weight decay are one for both.

    Not with `fused=True`, which leaves it to the step itself to skip gradients in fp16 that are not finite.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; the gradients of matrices are used up by it."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None or weight.ndim < 2:
                    continue
                state = self.state[weight]
                if not state:  # named as AdamW's, which reads them when a state is loaded
                    state |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(weight)}
                state["step"] += 1
                momentum = state["exp_avg"].lerp_(weight.grad, 1 - MOMENTUM)
                step = orthogonal(weight.grad.lerp(momentum, MOMENTUM).flatten(1))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(step.view(weight.shape), alpha=group["lr"] * RMS * max(step.shape) ** 0.5)
                weight.grad = None
        return super().step(closure)


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix (m, n) with its singular values between about 0.7 and 1.2, by Newton-Schulz iteration in bfloat16."""
    a, b, c = QUINTIC
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide.bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x if wide is matrix else x.T).to(matrix.dtype)
