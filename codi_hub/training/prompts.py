"""Prompt embeddings of a training: on the disk, by text encoder and text, and loaded row by row."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.prompts import PromptWarnings
from codi_hub.backbones.values import Prompt
from codi_hub.training.records import Records

NAMED = 3  # prompts that are too long, by name
RECENT = 64  # embeddings kept in memory, where the others are on the disk
PROBE = "a photograph of 7 red balls"  # its embedding tells text encoders and precisions apart


class PromptStore:
    """Prompt embeddings; each text is encoded once, and by itself, so that its embedding depends on nothing else.

    Args:
        base: whose text encoders are used, in its precision.
        folder: where the embeddings are kept, shared by runs; None keeps all of them in memory.

    Attributes:
        on_message: takes lines for people: prompts that are too long, `NAMED` of them by name.
    """

    def __init__(self, base: Backbone, folder: Path | None) -> None:
        self.base = base
        self.on_message: Callable[[str], object] = lambda text: None
        self._warnings = PromptWarnings(base, lambda text: self.on_message(text), NAMED)
        self._recent: OrderedDict[str, Prompt] = OrderedDict()
        self._records = None if folder is None else Records(folder / f"prompts-{text_digest(base)}")

    def prepare(self, texts: Sequence[str]) -> None:
        """Encode the texts that are not known yet."""
        self._warnings.check(texts)
        missing = self._missing(texts)
        if missing and self._records is not None:
            self._records.refresh()  # another process may have encoded them
            missing = self._missing(texts)
        if missing:
            with self.base.text_encoders_loaded():
                for text in missing:
                    self._encode(text)

    def rows(self, texts: Sequence[str]) -> Prompt:
        """Return the embeddings of B texts on the base's device, B rows."""
        rows = {text: self._row(text) for text in dict.fromkeys(texts)}
        return Prompt.cat([rows[text] for text in texts]).to(self.base.device)

    def _missing(self, texts: Sequence[str]) -> list[str]:
        known = self._recent if self._records is None else self._records
        return [text for text in dict.fromkeys(texts) if text not in known]

    def _row(self, text: str) -> Prompt:
        if text not in self._recent:
            tensors = self._records.read(text) if self._records else None
            if tensors is None:
                with self.base.text_encoders_loaded():
                    self._encode(text)
            else:
                self._keep(text, Prompt(tensors))
        self._recent.move_to_end(text)
        return self._recent[text]

    @torch.no_grad()
    def _encode(self, text: str) -> None:
        row = self.base.embed_texts([text]).to("cpu")
        if self._records is not None:
            self._records.write([(text, row.tensors, "")])
        self._keep(text, row)

    def _keep(self, text: str, row: Prompt) -> None:
        self._recent[text] = row
        if self._records is not None and len(self._recent) > RECENT:
            self._recent.popitem(last=False)


@torch.no_grad()
def text_digest(base: Backbone) -> str:
    """Return a hash of what decides embeddings: the text encoders' tensors by their norms, and a probe."""
    digest = hashlib.sha256()
    for module in base.text_modules():
        for name, value in module.state_dict().items():
            norm = torch.linalg.vector_norm(value, dtype=torch.float32).item() if value.is_floating_point() else 0
            digest.update(f"{name} {tuple(value.shape)} {norm!r}".encode())
    with base.text_encoders_loaded():
        probe = base.embed_texts([PROBE]).to("cpu")
    for name, value in sorted(probe.tensors.items()):
        digest.update(f"{name} {value.dtype}".encode() + value.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
