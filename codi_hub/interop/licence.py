"""The licence of a base model: what its model card, its file or the hub says of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from codi_hub.backbones.weights import SUFFIX, read_header
from codi_hub.data.sources import HUB_ID
from codi_hub.errors import CodiError, one_line
from codi_hub.interop.package import CARD
from codi_hub.registry import BaseRow

UNKNOWN = "unknown"
OWN = "apache-2.0"  # of this package, and of the base that it bundles
FRONT_MATTER = re.compile(r"\A\s*---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
NON_COMMERCIAL = re.compile(r"non-?commercial|research-only|(?:^|[-_ ])nc(?:[-_ ]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Licence:
    """The licence of a base.

    Attributes:
        id: an identifier of the hub's list, such as apache-2.0; `other` where it has a name of its own.
        name: that name.
        link: where its text is.
        gated: whether the hub gives the base only to those who accept its terms.
        repo: the base's id on the hub; None where it has none that is known.
    """

    id: str = UNKNOWN
    name: str | None = None
    link: str | None = None
    gated: bool = False
    repo: str | None = None

    @property
    def known(self) -> bool:
        """Return whether anything says what the licence is."""
        return self.id != UNKNOWN

    @property
    def label(self) -> str:
        """Return its own name, else its identifier."""
        return self.name or self.id

    @property
    def non_commercial(self) -> bool:
        """Return whether its name excludes commercial use, as cc-by-nc-4.0 and flux-1-dev-non-commercial-license do."""
        return any(NON_COMMERCIAL.search(text) for text in (self.id, self.name or ""))


def front_matter(text: str) -> dict[str, Any]:
    """Return the YAML at the beginning of a model card; empty where there is none that can be read."""
    match = FRONT_MATTER.match(text)
    with suppress(yaml.YAMLError):
        data = yaml.safe_load(match[1]) if match else None
        return data if isinstance(data, dict) else {}
    return {}


def licence_of(row: BaseRow) -> Licence:
    """Return what is known of the licence of a registered base.

    A folder's model card counts, and of a single file its `modelspec.license`; of a hub model what the hub says, or if
    it cannot be reached the model card in the cache.
    """
    if row.bundled:
        return Licence(OWN)
    path, repo = Path(row.source), repository(row.source)
    if path.is_file():
        metadata: Mapping[str, Any] = {}
        with suppress(CodiError):
            metadata = read_header(path).metadata if path.suffix == SUFFIX else {}
        return _stated({"license": metadata.get("modelspec.license")}, None)
    if path.is_dir():
        from codi_hub.backbones.sources import snapshot  # torch, which a hub model's licence does not need

        with suppress(CodiError, OSError, UnicodeDecodeError):
            return _stated(front_matter((snapshot(path) / CARD).read_text(encoding="utf-8")), repo)
        return Licence(repo=repo)
    return _on_hub(repo, row.options.get("revision")) if repo else Licence()


def repository(source: str) -> str | None:
    """Return the hub id of a base's source: itself, or the model of a folder in the hub's cache."""
    if not Path(source).exists():
        return source if HUB_ID.fullmatch(source) and "/" in source else None
    cached = next((part for part in reversed(Path(source).parts) if part.startswith("models--")), None)
    return cached.removeprefix("models--").replace("--", "/", 1) if cached else None


def _on_hub(repo: str, revision: str | None) -> Licence:
    from huggingface_hub import HfApi, hf_hub_download

    with suppress(Exception):  # the client raises a dozen unrelated kinds; all mean that it does not say
        info = HfApi().model_info(repo, revision=revision)
        card = info.card_data.to_dict() if info.card_data else {}
        return _stated(card | ({"extra_gated_prompt": "yes"} if info.gated else {}), repo)
    with suppress(Exception):
        cached = hf_hub_download(repo, CARD, revision=revision, local_files_only=True)
        return _stated(front_matter(Path(cached).read_text(encoding="utf-8")), repo)
    return Licence(repo=repo)


def _stated(card: Mapping[str, Any], repo: str | None) -> Licence:
    """Return the licence that the metadata of a model card states."""

    def text(key: str) -> str | None:
        value = card.get(key)
        value = ", ".join(map(str, value)) if isinstance(value, list) else value
        return one_line(value, 200) if value else None

    gated = any(str(key).startswith("extra_gated") for key in card)
    return Licence(text("license") or UNKNOWN, text("license_name"), text("license_link"), gated, repo)
