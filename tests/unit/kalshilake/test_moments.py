"""Steps and grids; moments are tested where they are read with (test_read)."""

from __future__ import annotations

import pytest

from kalshilake.moments import grid, step_us
from marketdata.errors import LakeError


@pytest.mark.parametrize(
    ("text", "us"),
    [("1us", 1), ("250ms", 250_000), ("1s", 10**6), ("5m", 3 * 10**8), ("1h", 36 * 10**8),
     ("2d", 2 * 864 * 10**8), (17, 17)],
)  # fmt: skip
def test_steps_are_read_exactly(text: str | int, us: int) -> None:
    """The words that every such library has."""
    assert step_us(text) == us


@pytest.mark.parametrize(
    "text", ["", "s", "1.5s", "-1s", "01s", "1 s", "1w", 0, -5, True, 1.0, None]
)
def test_other_steps_are_refused(text: object) -> None:
    """A guess would be another grid."""
    with pytest.raises(LakeError, match="no step"):
        step_us(text)  # type: ignore[arg-type]


def test_a_grid_is_the_multiples_in_a_half_open_interval() -> None:
    """Also before 1970, and when both ends lie on it or none does."""
    assert grid(0, 30, 10).tolist() == [0, 10, 20]
    assert grid(1, 31, 10).tolist() == [10, 20, 30]
    assert grid(-15, 5, 10).tolist() == [-10, 0]
    assert grid(11, 19, 10).tolist() == []
    with pytest.raises(LakeError, match="more than"):
        grid(0, 10**9, 1)
