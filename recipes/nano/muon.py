"""The Muon optimiser, for trainings of minutes. Only recipes use it."""

from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
ITERATIONS = 5
QUINTIC = 3.4445, -4.7750, 2.0315  # coefficients that bring singular values to about 1 (Jordan et al., 2024)
RMS = 0.2  # of an update at learning rate 1, about AdamW's


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al., 2024) for weights that are matrices or convolutions, AdamW for all others.

    An update is the gradient's momentum with its singular values set to about 1, scaled to AdamW's size (Liu et al.,
    "Muon is scalable for LLM training", 2025), so that learning rate and weight decay are the same for both.

    Not with `fused=True`, where the optimiser's step itself skips gradients in fp16 that are not finite.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step; it sets the gradients of matrices to None."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None or weight.ndim < 2:
                    continue
                state = self.state[weight]
                if not state:  # AdamW's names, which it reads when a state is loaded
                    state |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(weight)}
                state["step"] += 1
                momentum = state["exp_avg"].lerp_(weight.grad, 1 - MOMENTUM)
                update = orthogonal(weight.grad.lerp(momentum, MOMENTUM).flatten(1))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(update.view(weight.shape), alpha=group["lr"] * RMS * max(update.shape) ** 0.5)
                weight.grad = None
        return super().step(closure)


def orthogonal(matrix: Tensor) -> Tensor:
    """Return the matrix (m, n) with singular values of about 0.7 to 1.2, by Newton-Schulz iteration in bfloat16."""
    a, b, c = QUINTIC
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide.bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x if wide is matrix else x.T).to(matrix.dtype)
