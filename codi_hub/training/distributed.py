"""Several processes that distil one adapter, as `accelerate launch` starts them: the main one writes, all end alike.

Imports no torch before there are several.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from codi_hub.errors import AlreadyReported, CodiError

T = TypeVar("T")
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # where accelerate looks
TIMEOUT = timedelta(days=1)  # others wait while one encodes or measures; a process that dies is noticed before
FIRST_TO_FAIL = "codi/first-to-fail"


def launched() -> bool:
    """Whether this is one of several processes."""
    return any(os.environ.get(name, "").isdigit() and int(os.environ[name]) > 1 for name in SIZES)


@contextmanager
def joined(device: str) -> Iterator[bool]:
    """Join the processes launched beside this one, if any; yield whether this is the main one. May be nested.

    Raises:
        AlreadyReported: a failure of this process follows from another's, or is the same.
        CodiError: another process has ended without reporting an error.
    """
    if not launched():
        yield True
        return
    _join(device)
    try:
        yield is_main()
    except AlreadyReported:
        raise
    except BaseException as error:
        if not _first_to_fail():
            raise AlreadyReported("another process of this run has failed, and has reported it") from error
        if _lost(error):
            raise CodiError(f"another process of this run has ended: resume the run ({error})") from error
        raise


def _join(device: str) -> None:
    import torch.distributed
    from accelerate import PartialState

    from codi_hub.inference.devices import choose_device
    from codi_hub.training.launch import on_cpu

    if torch.distributed.is_initialized():
        return
    PartialState(cpu=on_cpu() or choose_device(device).type == "cpu", timeout=TIMEOUT)
    if torch.distributed.is_initialized():  # at exit, since accelerate's state of a process cannot be set up twice
        atexit.register(torch.distributed.destroy_process_group)


def _first_to_fail() -> bool:
    """Whether this process failed first, and so is the one to report the failure."""
    from torch.distributed import distributed_c10d, get_rank

    try:
        first = distributed_c10d._get_default_store().compare_set(FIRST_TO_FAIL, "", str(get_rank()))
    except (RuntimeError, ValueError):  # the store ended together with the process that had it
        return True
    return first.decode() == str(get_rank())


def _lost(error: BaseException) -> bool:
    """Whether an error is that of a broken connection."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def count() -> int:
    """Return the number of processes that have joined, 1 where this one is alone."""
    from torch import distributed

    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes and reports."""
    from torch import distributed

    return not distributed.is_initialized() or distributed.get_rank() == 0


def agreed(value: Any) -> Any:
    """Return the main process's value in all processes."""
    if count() == 1:
        return value
    from torch import distributed

    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def by_main(compute: Callable[[], T]) -> T:
    """Compute something in the main process; return it in all.

    Raises:
        AlreadyReported: in the others, where the main process failed. That one raises its own error.
    """
    if not is_main():
        succeeded, result = agreed(None)
        if not succeeded:
            raise AlreadyReported("the main process of this run has failed, and has reported it")
        return result
    try:
        result = compute()
    except Exception:
        agreed((False, None))
        raise
    return agreed((True, result))[1]


def main_first(compute: Callable[[], T]) -> T:
    """Compute in every process, in the main one first: for results that it caches on the disk. Raises as `by_main`."""
    results: list[T] = []
    by_main(lambda: results.append(compute()))
    return results[0] if results else compute()
