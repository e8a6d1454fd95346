"""`control`: a trained copy of the base's encoder half that sees z_t, t, the prompt and the condition (PE-CoDi).

With `zero_conv` fusion it is a ControlNet, tensor for tensor; with `gate` the paper's
h' = (1 - mu) h_theta + mu h_eta.
"""

from typing import Any

import torch
from diffusers import ControlNetModel
from torch import Tensor, nn

from codi_hub.adapters.adapter import Adapter, Prepared
from codi_hub.adapters.top_down import TopDown
from codi_hub.backbones.unet import Features, FrozenBase, encode_features
from codi_hub.errors import UsageError

FUSIONS = ("zero_conv", "gate")
ATTEND = ("base", "all")
STEM_CHANNELS = (16, 32, 96, 256)  # ControlNet's; one stride of 2 between neighbours
LAST_GAIN = 0.5
LUMA_DEVIATION, CHROMA_DEVIATION = 0.25, 0.06  # of photographs in [0, 1], about
WHITEN = [  # rows: luma, orange-blue, green-magenta, each brought to unit deviation
    [1 / (3 * LUMA_DEVIATION)] * 3,
    [0.5 / CHROMA_DEVIATION, 0.0, -0.5 / CHROMA_DEVIATION],
    [-0.25 / CHROMA_DEVIATION, 0.5 / CHROMA_DEVIATION, -0.25 / CHROMA_DEVIATION],
]
GATE_LR = 1e-2  # at mu = 0 only mu moves, so it must not crawl


class ControlAdapter(Adapter):
    """A conditional encoder and its fusion with the frozen base.

    Args:
        base: the base it belongs to; only its shape, and with `pretrained` its weights, are taken.
        fusion: `zero_conv` or `gate`.
        pretrained: start from the base's encoder, or from random weights.
        attend: the levels of the encoder that read the prompt: those of the `base`, or `all`. What is read below a
            level never reaches it, so that without the latter no word is tied to a place finer than the base's own
            attention.
        top_down: bring what the encoder's deep levels know to its fine ones too; then it is no ControlNet.
        others: see `Adapter`.

    Raises:
        UsageError: see `Adapter`; an unknown fusion or attend, or `top_down` with gates.
    """

    kind = "control"

    def __init__(
        self,
        base: FrozenBase,
        *,
        fusion: str = "zero_conv",
        pretrained: bool = True,
        attend: str = "base",
        top_down: bool = False,
        **config: Any,
    ):
        super().__init__(**config)
        if fusion not in FUSIONS:
            raise UsageError(f"--fusion {fusion}: one of {', '.join(FUSIONS)}")
        if attend not in ATTEND:
            raise UsageError(f"--attend {attend!r:.40}: one of {', '.join(ATTEND)}")
        if type(top_down) is not bool:
            raise UsageError(f"top_down {top_down!r:.40}: true or false")
        stem = STEM_CHANNELS[: base.factor.bit_length()]
        with torch.device(base.device):
            self.encoder = ControlNetModel.from_unet(
                base.unet,
                conditioning_embedding_out_channels=stem,
                conditioning_channels=self.config["condition_channels"],
                load_weights_from_unet=pretrained,
            )
        if attend == "all":
            self.encoder = attending(self.encoder)
        if hasattr(self.encoder, "add_embedding"):  # for which from_unet takes 64 heads, whatever the U-Net has
            mine, theirs = self.encoder.add_embedding.pool, base.unet.add_embedding.pool
            mine.num_heads, mine.dim_per_head = theirs.num_heads, theirs.dim_per_head
            self.encoder.register_to_config(addition_embed_type_num_heads=theirs.num_heads)
        self.encoder.requires_grad_(True).train()
        initialise_stem(self.encoder.controlnet_cond_embedding)
        self.fusion = fusion
        self.config["fusion"] = fusion
        if attend != "base":
            self.config["attend"] = attend
        if top_down:
            if fusion == "gate":
                raise UsageError("--top-down: not with --fusion gate, which replaces features and adds nothing")
            self.config["top_down"] = True
            self.top_down = TopDown(self.encoder)
        if fusion == "gate":
            count = len(self.encoder.controlnet_down_blocks) + 1
            self.encoder.controlnet_down_blocks = nn.ModuleList()
            self.encoder.controlnet_mid_block = nn.Identity()
            self.mu = nn.Parameter(torch.zeros(count, device=base.device))
        self.to(torch.float32, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def prepare(self, condition: Tensor, prompt: Tensor | None = None) -> Prepared:
        return [self.encoder.controlnet_cond_embedding(condition)]

    def conditioned(
        self, emb: Tensor, features: Features, z_t: Tensor, t: Tensor, prompt: Tensor, prepared: Prepared
    ) -> Features:
        _, conditional = encode_features(self.encoder, z_t, t, prompt, prepared[0])
        return self.fuse(features, conditional)

    def fuse(self, features: Features, conditional: Features) -> Features:
        """h' from h_theta and h_eta, level by level; at initialisation h' is h_theta, bit for bit."""
        if self.fusion == "gate":
            return [(1 - mu) * h + mu * h_eta for mu, h, h_eta in zip(self.mu, features, conditional, strict=True)]
        convolutions = [*self.encoder.controlnet_down_blocks, self.encoder.controlnet_mid_block]
        fused = [h + conv(h_eta) for conv, h, h_eta in zip(convolutions, features, conditional, strict=True)]
        if "top_down" in self.config:
            for place, more in self.top_down(conditional).items():
                fused[place] = fused[place] + more
        return fused

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Groups for the optimiser; each is clipped apart. The gates have their own rate and no weight decay."""
        weights = [value for name, value in self.named_parameters() if name != "mu"]
        groups: list[dict[str, Any]] = [{"params": weights, "lr": lr}]
        if self.fusion == "gate":
            groups.append({"params": [self.mu], "lr": max(GATE_LR, lr), "weight_decay": 0.0})
        return groups


def attending(encoder: ControlNetModel) -> Any:
    """The encoder with attention to the prompt at every level; what is new adds nothing yet."""
    own = encoder.config["down_block_types"]
    types = ["CrossAttnDownBlock2D" if name == "DownBlock2D" else name for name in own]
    one = encoder.config["only_cross_attention"]
    only = [one] * len(own) if isinstance(one, bool) else one
    only = [before or name != now for before, name, now in zip(only, own, types, strict=True)]
    config = dict(encoder.config) | {"down_block_types": types, "only_cross_attention": only}
    with torch.device(encoder.device):
        made: Any = ControlNetModel.from_config(config)
    if encoder.device.type != "meta":
        made.load_state_dict(encoder.state_dict(), strict=False)
    for name, now, block in zip(own, types, made.down_blocks, strict=True):
        for attention in block.attentions if name != now else ():
            nn.init.zeros_(attention.proj_out.weight)
            nn.init.zeros_(attention.proj_out.bias)
    return made


def initialise_stem(stem: Any) -> None:
    """Starts a condition stem so that it carries its condition from the first step; its form stays ControlNet's.

    PyTorch's default shrinks a signal about threefold at every layer, and ControlNet starts the last layer at zero:
    what comes out hardly depends on the condition, and colour, whose share in an RGB picture is small, is learnt last
    of all (in 800 steps of superres, not at all). So: He initialisation (He et al., 2015), a first layer that sees the
    condition centred and decorrelated, and a last layer that is not zero; the fusion is what starts at zero.
    """
    layers = [layer for layer in stem.modules() if isinstance(layer, nn.Conv2d)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    first, last = stem.conv_in, stem.conv_out
    with torch.no_grad():
        last.weight.mul_(LAST_GAIN)
        scale = torch.eye(first.in_channels, device=first.weight.device) / LUMA_DEVIATION
        if first.in_channels >= 3:  # a picture; what follows it, such as a mask, is only scaled
            scale[:3, :3] = torch.tensor(WHITEN)
        first.weight.copy_(torch.einsum("ochw,cd->odhw", first.weight, scale))
        first.bias.copy_(-0.5 * first.weight.sum((1, 2, 3)))
