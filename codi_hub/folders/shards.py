"""Shards: the part of a plan that one of several machines makes, by the names of the items alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from codi_hub.config.values import Shard
from codi_hub.folders.plan import Item


def of_shard(items: Iterable[Item], shard: Shard) -> list[Item]:
    """Return the items of a shard; the variants of one input are in one shard."""
    return [item for item in items if shard_of(item.name, shard.of) == shard.number]


def shard_of(name: str, count: int) -> int:
    """Return the shard in [1, count] of a relative name, by its hash: other files do not move it."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") % count + 1
