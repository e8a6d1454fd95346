"""A training method: a Huber loss on the predicted clean latents."""

from pydantic import Field
from torch.nn.functional import huber_loss

from codi_hub.losses.method import Method, MethodConfig, StepContext, Terms, neighbours


class HuberConfig(MethodConfig):
    """Settings of method huber."""

    delta: float = Field(1.0, gt=0)
    """Error at which the loss becomes linear."""


class Huber(Method):
    """Regression of x at a time of the 8-point grid, without a consistency term."""

    Config = HuberConfig
    default_kind = "static"

    def weights(self) -> dict[str, float]:
        """Return the one term with its weight."""
        return {"huber": 1.0}

    def loss(self, context: StepContext) -> Terms:
        """Compare x_hat with x."""
        t, _ = neighbours(context, points=8, dt=1, shared=True)
        z_t = context.schedule.add_noise(context.x, context.eps, t)
        x_hat, _ = context.student(z_t, t)
        return {"huber": huber_loss(x_hat, context.x, delta=self.config.delta)}
