"""Fixtures shared by the tests of the recipes."""

from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def accelerator_state() -> Iterator[None]:
    """Accelerate has one state per process, and refuses another precision in it."""
    yield
    AcceleratorState._reset_state(True)
