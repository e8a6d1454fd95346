"""Several processes that distil one adapter, as `accelerate launch` starts them: one writes and speaks, all end alike.

Knows no torch until there are several.
"""

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from codi_hub.errors import AlreadyReported, CodiError

T = TypeVar("T")
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # where accelerate looks
WAIT = timedelta(days=1)  # the others wait while one encodes pairs or measures; one that dies is noticed before
FIRST_TO_FAIL = "codi/first-to-fail"


def launched() -> bool:
    """Whether this is one of several processes."""
    return any(os.environ.get(name, "").isdigit() and int(os.environ[name]) > 1 for name in SIZES)


@contextmanager
def together(device: str) -> Iterator[bool]:
    """Joins the processes launched beside this one, if any; gives whether this is the main one. May be nested.

    Raises:
        AlreadyReported: where a failure of this process follows from another's, or is the same.
        CodiError: another process has gone without a word.
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
            raise AlreadyReported("another process of this run has failed, and has said why") from error
        if _lost(error):
            raise CodiError(f"another process of this run has gone; go on with --resume ({error})") from error
        raise


def _join(device: str) -> None:
    import torch.distributed
    from accelerate import PartialState

    from codi_hub.inference.engine import choose_device

    if torch.distributed.is_initialized():
        return
    PartialState(cpu=choose_device(device).type == "cpu", timeout=WAIT)
    if torch.distributed.is_initialized():  # at exit, since accelerate's state of a process cannot be set up twice
        atexit.register(torch.distributed.destroy_process_group)


def _first_to_fail() -> bool:
    """Whether this process is the one to say what went wrong."""
    from torch.distributed import distributed_c10d, get_rank

    try:
        first = distributed_c10d._get_default_store().compare_set(FIRST_TO_FAIL, "", str(get_rank()))
    except (RuntimeError, ValueError):  # it has gone together with the process that kept it
        return True
    return first.decode() == str(get_rank())


def _lost(error: BaseException) -> bool:
    """Whether the words of an error are those of a broken connection."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def count() -> int:
    """How many processes have joined, 1 where this one is alone."""
    from torch import distributed

    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes and speaks."""
    from torch import distributed

    return not distributed.is_initialized() or distributed.get_rank() == 0


def agreed(answer: Any) -> Any:
    """The main process's answer, in all of them."""
    if count() == 1:
        return answer
    from torch import distributed

    answers = [answer]
    distributed.broadcast_object_list(answers)
    return answers[0]


def by_main(make: Callable[[], T]) -> T:
    """What the main process makes, in all of them.

    Raises:
        AlreadyReported: in the others, where the main process failed. It raises its own error itself.
    """
    if not is_main():
        well, made = agreed(None)
        if not well:
            raise AlreadyReported("the main process of this run has failed, and has said why")
        return made
    try:
        made = make()
    except Exception:
        agreed((False, None))
        raise
    return agreed((True, made))[1]


def main_first(make: Callable[[], T]) -> T:
    """What each process makes, once the main one has made it: for what it leaves on the disk. Raises as `by_main`."""
    made: list[T] = []
    by_main(lambda: made.append(make()))
    return made[0] if made else make()
