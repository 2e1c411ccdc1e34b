"""What the tests share: one trial, made when the first of them needs it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.aarch64.place import CannotRunError
from tests.aarch64.trial import Trial


@pytest.fixture(scope="session")
def trial() -> Iterator[Trial]:
    """Fails, never skips: what was not run was not tested."""
    made = Trial()
    try:
        made.__enter__()
    except CannotRunError as error:
        pytest.fail(str(error))
    try:
        yield made
    finally:
        made.__exit__(None, None, None)
