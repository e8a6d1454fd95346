"""CLIP's tokenizer, built from the bundled byte-pair merges (MIT licence, see `configs/clip/LICENSE`)."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

MERGES = Path(__file__).parent / "configs" / "clip" / "merges.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"
VOCABULARY_FILES = ("vocab.json", "tokenizer.json", "spiece.model", "tokenizer.model")  # one is enough
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


def has_vocabulary(folder: Path) -> bool:
    """Return whether a tokenizer's folder has its words, not its config alone."""
    return any((folder / name).is_file() for name in VOCABULARY_FILES)


def clip_tokenizer(config: Mapping[str, Any]) -> Any:
    """Return CLIP's tokenizer.

    Args:
        config: `tokenizer_config.json`, of which the special tokens and the length are used.
    """
    from transformers import CLIPTokenizer

    vocabulary, merges = clip_vocabulary()
    tokens = {name: config[name] for name in SPECIAL if name in config}
    tokens = {name: token["content"] if isinstance(token, Mapping) else token for name, token in tokens.items()}
    return CLIPTokenizer(
        vocab=dict(vocabulary),
        merges=list(merges),
        model_max_length=config.get("model_max_length", 77),
        **tokens,
    )


@cache
def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return CLIP's pieces with their ids, and its merges: bytes, bytes that end a word, merges, two special tokens."""
    lines = gzip.decompress(MERGES.read_bytes()).decode().splitlines()
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines)]
    # Bytes that print stand for themselves and come first; the others are written as characters from U+0100 on.
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(byte) for byte in printing] + [chr(256 + k) for k in range(256 - len(printing))]
    pieces = [*letters, *(letter + "</w>" for letter in letters), *(left + right for left, right in merges), START, END]
    return {piece: k for k, piece in enumerate(pieces)}, merges
