"""Training methods: CoDi, its guidance terms, and the baselines it is compared with; found by name in `METHODS`."""

from codi_hub.plugins import Plugins

METHODS = Plugins(
    "training method",
    "codi_hub.losses",
    {
        "pe-codi": "codi_hub.losses.codi:PECoDi",
        "codi": "codi_hub.losses.codi:CoDi",
        "conditional": "codi_hub.losses.conditional:Conditional",
        "cm": "codi_hub.losses.consistency_distillation:ConsistencyDistillation",
        "gd": "codi_hub.losses.progressive:ProgressiveDistillation",
    },
)
GUIDANCE = Plugins(
    "guidance term",
    "codi_hub.guidance",
    {
        "latent": "codi_hub.losses.guidance:latent",
        "relative": "codi_hub.losses.guidance:relative",
        "roundtrip": "codi_hub.losses.guidance:roundtrip",
        "pixel": "codi_hub.losses.guidance:pixel",
        "lpips": "codi_hub.losses.guidance:lpips",
    },
)
