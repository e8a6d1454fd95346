"""Making of items by Ray Data: a pool of actors, each with warm networks; chunks of the plan go in, rows come back.

Ray schedules, restarts dead actors and gives their chunks to others. What an actor had made before it died is in the
run log, so that it is not made again.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from codi_hub.errors import CodiError, UsageError, describe
from codi_hub.events import Message, OnEvent
from codi_hub.folders.devices import Setup, WorkerSide, logger_levels, set_levels
from codi_hub.folders.interrupts import WorkersLost
from codi_hub.folders.plan import Item
from codi_hub.folders.rows import RegistryLog, Rows
from codi_hub.paths import absolute_path
from codi_hub.urls import as_path

CHUNK = 16  # items per task, at least; a multiple of the batch
RETRIES = 2  # of a chunk whose actor died
OBJECT_STORE = 200 << 20  # bytes, of a local cluster: only names and rows pass through it
PASSED = ("CODI_", "HF_", "AWS_")  # beginnings of the names of environment variables that actors get


class RayWorkers:
    """Makes items by a pool of Ray actors.

    Args:
        address: "local" (a cluster of this process), "auto" (the one of this machine), or HOST:PORT.
        devices: one actor for each; () for one per GPU of the cluster, or per CPU where there is none.
        setup: what the actors load.
        batch: number of images computed together, if it is given.
        on_event: told what the actors say.
    """

    def __init__(
        self, address: str, devices: Sequence[str], setup: Setup, batch: int | None, on_event: OnEvent
    ) -> None:
        kinds = {name.split(":")[0] for name in devices}
        if len(kinds) > 1 or kinds - {"cpu", "cuda"}:
            raise UsageError(f"devices {','.join(devices)}: with ray all are cpu or all are cuda")
        self._address, self._devices, self._setup, self._on_event = address, devices, setup, on_event
        self._chunk = -(-CHUNK // (batch or 1)) * (batch or 1)

    def make(
        self, indices: Sequence[int], items: Sequence[Item], rows: Rows, log: RegistryLog, stop: threading.Event
    ) -> list[int]:
        """See `runner.Workers`."""
        left = {index: items[index] for index in indices}
        batches: list[int] = []
        with _cluster(self._address, len(self._devices)) as ray:
            try:
                for answer in self._answers(ray, left):
                    self._take(json.loads(answer), left, rows, batches)
                    if stop.is_set():
                        break
            except ray.exceptions.RayError as error:
                raise WorkersLost(f"Ray ended the run: {_reason(error)}; the same command again continues") from error
            finally:
                for index, row in log.made(left).items():  # whose answer had not come yet
                    rows.add(index, "ok", seconds=row.seconds)
        return batches

    def _answers(self, ray: Any, items: Mapping[int, Item]) -> Iterator[str]:
        """Yield what the actors answer, as soon as it comes."""
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.enable_operator_progress_bars = False
        table = [{"index": index, "item": pickle.dumps(_absolute(item))} for index, item in items.items()]
        chunks = ray.data.from_items(table, override_num_blocks=-(-len(table) // self._chunk))
        gpus = int(ray.cluster_resources().get("GPU", 0))
        on_gpu = self._devices[0].startswith("cuda") if self._devices else gpus > 0
        number = len(self._devices) or gpus or int(ray.cluster_resources()["CPU"])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*ray_remote_args")  # no other way to bound the restarts
            answers = chunks.map_batches(
                _Actor,
                fn_constructor_args=(self._setup, "cuda" if on_gpu else "cpu", logger_levels()),
                batch_size=None,
                compute=ray.data.ActorPoolStrategy(size=min(number, chunks.num_blocks())),
                num_gpus=1 if on_gpu else 0,
                num_cpus=0 if on_gpu else 1,
                ray_remote_args_fn=_lives,
            )
        for row in answers.iter_rows():
            yield row["answer"]

    def _take(self, answer: Any, left: dict[int, Item], rows: Rows, batches: list[int]) -> None:
        for text in answer["messages"]:
            self._on_event(Message(text))
        for index, status, details in answer["rows"]:
            del left[index]
            rows.add(index, status, **details, recorded=True)
        batches += answer["batches"]


def _lives() -> dict[str, int]:
    """Return how often Ray restarts an actor, and gives a chunk to another; without, an image could kill for ever."""
    return {"max_restarts": RETRIES, "max_task_retries": RETRIES}


class _Actor:
    """An actor: networks on one device. It is called with a chunk of items, and returns one answer as JSON."""

    def __init__(self, setup: Setup, device: str, levels: Mapping[str, int]) -> None:
        set_levels(levels)
        self._rows: list[tuple[int, str, dict[str, Any]]] = []
        self._messages: list[str] = []
        self._side = WorkerSide(setup, device, self._rows.append, self._messages.append, threading.Event())

    def __call__(self, chunk: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        items, maker = self._side.items, self._side.maker
        indices = [int(index) for index in chunk["index"]]
        items.update(zip(indices, map(pickle.loads, chunk["item"]), strict=True))
        self._rows.clear()
        self._messages.clear()
        maker.batches.clear()
        made = self._side.log.made(dict(items))  # by an actor that died
        for index, row in made.items():
            items.pop(index)
            self._rows.append((index, "ok", {"error": None, "seconds": row.seconds}))
        maker.make([index for index in indices if index not in made])
        maker.flush()
        answer = {"rows": self._rows, "messages": self._messages, "batches": maker.batches}
        return {"answer": np.array([json.dumps(answer)], dtype=object)}


@contextmanager
def _cluster(address: str, cpus: int) -> Iterator[Any]:
    """Connect to a cluster, or start a local one that ends with the block. Raises CodiError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to Ray's makers
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what goes wrong is raised, too
    try:
        import ray
        import ray.data
    except ImportError:
        raise UsageError("ray is not installed: pip install codi-hub[ray]") from None
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    variables = {name: value for name, value in os.environ.items() if name.startswith(PASSED)}
    try:
        if address == "local":
            here: dict[str, Any] = {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
            cores = max(cpus, os.cpu_count() or 1)
            ray.init(address="local", num_cpus=cores, object_store_memory=OBJECT_STORE, **here, **quiet)
        else:
            ray.init(address=address, runtime_env={"env_vars": variables}, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise CodiError(f"ray {address}: cannot be reached ({describe(error)}): local, auto or HOST:PORT") from error
    try:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        yield ray
    finally:
        ray.shutdown()


def _absolute(item: Item) -> Item:
    """Return an item for a process with another working directory."""
    also = tuple(as_path(absolute_path(path)) for path in item.also)
    source, output = absolute_path(item.input_file), absolute_path(item.output_file)
    return replace(item, input_file=source, output_file=output, also=also)


def _reason(error: BaseException) -> str:
    """Return the last line of what Ray says, which names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
