"""Training pairs, encoded once and when a step first needs them, in a folder that runs and processes may share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from codi_hub.backbones.backbone import Backbone
from codi_hub.errors import InvalidInput, UsageError
from codi_hub.tasks.base import Pair, Task
from codi_hub.training.pairs import PairMaker, PairsSpec
from codi_hub.training.records import Records

WRITTEN_TOGETHER = 16  # pairs
REPORT_EVERY = 256  # pairs between messages
OnText = Callable[[str], object]


class Pairs(Protocol):
    """Training pairs by row, as the trainer reads them. `folder` is where they are kept, None for memory alone."""

    folder: Path | None

    def __len__(self) -> int:
        """Return the number of pairs."""

    def expect(self, order: Iterable[int]) -> None:
        """Note the order in which rows will be asked for, so that they can be created ahead."""

    def prepare(self, rows: Sequence[int]) -> list[str]:
        """Encode the rows that are not encoded yet; return the prompts of all of them."""

    def rows(self, index: Tensor) -> Cache:
        """Return some pairs."""


@dataclass
class Cache:
    """Pairs in memory: `x` float16 (N, C, h, w), `conditions` uint8 (N, K, H, W), `targets` uint8 (N, 3, H, W)."""

    x: Tensor
    conditions: Tensor
    prompts: list[str]
    targets: Tensor | None = None
    folder: Path | None = None

    def __len__(self) -> int:
        return len(self.x)

    def expect(self, order: Iterable[int]) -> None:
        """See `Pairs.expect`."""

    def prepare(self, rows: Sequence[int]) -> list[str]:
        """See `Pairs.prepare`."""
        return [self.prompts[k] for k in rows]

    def rows(self, index: Tensor) -> Cache:
        """See `Pairs.rows`."""
        targets = None if self.targets is None else self.targets[index]
        return Cache(self.x[index], self.conditions[index], [self.prompts[k] for k in index], targets)


class PairFile:
    """Pairs in a file of `folder`, each encoded when it is first asked for, by itself: its row depends on nothing else.

    The file's name is a hash of the source, the task, the autoencoder and the first pair. So runs of several kinds can
    share a folder, and a task or data set that changed is noticed where its first pair shows it. Rows that an earlier
    run, or one that was killed, has completed are read.

    Args:
        spec, indices: the pairs of the source.
        base: whose autoencoder is used.
        folder: of the file.
        workers: processes that create pairs.
        with_targets: whether ground truth is kept beside the latents.
        message: told how many pairs are encoded.
        opened: the source and the task of `spec`, where they are open already.

    Raises:
        UsageError: `folder` cannot be written to.
        InvalidInput: pairs whose sides the base cannot encode.
    """

    def __init__(
        self,
        spec: PairsSpec,
        indices: range,
        base: Backbone,
        folder: Path,
        *,
        workers: int = 0,
        with_targets: bool = False,
        message: OnText = lambda text: None,
        opened: tuple[Any, Task] | None = None,
    ) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"data.cache_dir {folder}: {error.strerror or error}") from error
        self._indices, self._base, self._with_targets, self._message = indices, base, with_targets, message
        self._maker = PairMaker(spec, workers, opened)
        first = self._maker.pair(indices[0])
        _check_sides(first, base.latents.multiple)
        stored = [indices.start, indices.stop], base.latents_digest(), _pair_digest(first), with_targets
        asked = {name: value for name, value in spec.__dict__.items() if value or name != "columns"}
        key = json.dumps([asked, *stored])
        self.folder: Path | None = folder
        self._records = Records(folder / hashlib.sha256(key.encode()).hexdigest()[:16])

    def __len__(self) -> int:
        return len(self._indices)

    def expect(self, order: Iterable[int]) -> None:
        """See `Pairs.expect`."""
        self._maker.expect(self._indices[k] for k in dict.fromkeys(order) if str(k) not in self._records)

    def prepare(self, rows: Sequence[int]) -> list[str]:
        """See `Pairs.prepare`. Raises InvalidInput."""
        if self._missing(rows):
            self._records.refresh()  # another process may have encoded them
        missing = iter(self._missing(rows))
        while group := list(islice(missing, WRITTEN_TOGETHER)):
            before = len(self._records)
            self._records.write([self._encoded(k) for k in group])
            if before // REPORT_EVERY < (now := len(self._records)) // REPORT_EVERY:
                self._message(f"{now} of {len(self)} pairs encoded")
        return [self._records.text(str(k)) for k in rows]

    def rows(self, index: Tensor) -> Cache:
        """See `Pairs.rows`. Raises InvalidInput."""
        rows = [int(k) for k in index]
        self.prepare(rows)
        found = [self._records.read(str(k)) for k in rows]
        if None in found:  # damaged since they were written
            return self.rows(index)
        parts = {name: torch.stack([row[name] for row in found if row]) for name in found[0] or {}}
        prompts = [self._records.text(str(k)) for k in rows]
        return Cache(parts["x"], parts["conditions"], prompts, parts.get("targets"))

    def close(self) -> None:
        """End the processes that create pairs."""
        self._maker.close()

    def _missing(self, rows: Sequence[int]) -> list[int]:
        return [k for k in dict.fromkeys(rows) if str(k) not in self._records]

    @torch.no_grad()
    def _encoded(self, row: int) -> tuple[str, dict[str, Tensor], str]:
        pair = self._maker.pair(self._indices[row])
        _check_sides(pair, self._base.latents.multiple)
        target, condition = (torch.tensor(image).permute(2, 0, 1) for image in (pair.target, pair.condition))
        x = self._base.encode(target[None].float() / 255)[0].half().cpu()
        tensors = {"x": x, "conditions": condition} | ({"targets": target} if self._with_targets else {})
        return str(row), tensors, pair.prompt


def _check_sides(pair: Pair, multiple: int) -> None:
    height, width = pair.target.shape[:2]
    if height % multiple or width % multiple:
        raise InvalidInput(f"pairs of {width}x{height} px: sides must be multiples of {multiple}")


def _pair_digest(pair: Pair) -> str:
    """Return a hash of a pair, which tells it from one that is made otherwise."""
    parts = (pair.target.tobytes(), pair.condition.tobytes(), pair.prompt.encode())
    return hashlib.sha256(b"".join(parts)).hexdigest()
