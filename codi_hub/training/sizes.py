"""Batch and learning rate by the size of the base and of the adapter, where neither was asked for."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import nn

from codi_hub.adapters.skeleton import skeleton
from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.weight_sketch import unpacked_shape
from codi_hub.training.job import Plan

SMALL = 100_000_000  # parameters of a base's network below which the defaults of the configuration and the tasks hold
LARGE = 1_500_000_000  # and from which a batch is one pair: SDXL has 2.6 billion, Stable Diffusion 1 and 2 have 0.9
LIGHT = 0.1  # share of the network's parameters below which an adapter is a small addition and no copy


def sized(work: Plan, base: Backbone) -> Plan:
    """Return the plan with batch and learning rate for the base's size, where they were not asked for."""
    fields = work.config.training.model_fields_set
    network = getattr(base, base.network_name, base)  # a family of another package may have its own names
    parameters = count_parameters(network)
    if parameters < SMALL:
        return work
    settings = {name: getattr(work.adapter, name) for name in type(work.adapter).model_fields}
    light = count_parameters(skeleton(work.kind, base, **settings)) < LIGHT * parameters
    found: dict[str, Any] = {"batch": 1, "accumulate": 4} if parameters >= LARGE else {"batch": 4}
    found["lr"] = 1e-4 if light else 1e-5
    changes = {name: value for name, value in found.items() if name not in fields}
    training = work.config.training.model_copy(update=changes)
    return replace(work, config=work.config.model_copy(update={"training": training}))


def count_parameters(network: nn.Module) -> int:
    """Return the number of parameters; quantised weights count as what they stand for."""
    return sum(math.prod(unpacked_shape(parameter)) for parameter in network.parameters())
