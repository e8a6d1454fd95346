"""What a format is given to write."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from codi_hub.backbones.backbone import Backbone
from codi_hub.interop.folders import SINGLE
from codi_hub.record import AdapterRecord


@dataclass(frozen=True)
class Export:
    """An adapter on its base, loaded in the precision that is written.

    Attributes:
        ref: its name, task:version.
        base_name: the base's.
    """

    ref: str
    base_name: str
    record: AdapterRecord
    adapter: Any
    base: Backbone

    @property
    def channels(self) -> int:
        """Channels of the condition."""
        return self.record.config.get("condition_channels", 3)

    @property
    def file(self) -> str:
        """Name of a single file with the weights, which is copied among others'."""
        return SINGLE.format(name=re.sub(r"[^\w-]", "-", self.ref))
