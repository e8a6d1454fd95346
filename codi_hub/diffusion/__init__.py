"""The mathematics of diffusion and flow: schedules, conversions, samplers. Pure functions, no networks."""

from codi_hub.plugins import Plugins

SAMPLERS = Plugins(
    "sampler",
    "codi_hub.samplers",
    {
        "ddim": "codi_hub.diffusion.samplers:ddim",
        "renoise": "codi_hub.diffusion.samplers:sample",
        "dpmpp": "codi_hub.diffusion.samplers:dpmpp",
    },
)
