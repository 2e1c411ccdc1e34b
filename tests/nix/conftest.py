"""A connection that a server refuses leaves its socket to the garbage collector (asyncpg closes it
a turn of the loop later, and the test's loop has ended by then). Collected here, quietly: left to
chance it was counted as the failure of whatever test ran when it was collected."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def refused_sockets() -> Iterator[None]:
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
