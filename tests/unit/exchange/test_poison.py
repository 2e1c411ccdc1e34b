"""Frames that no exchange should send: each is what its name says."""

from __future__ import annotations

import orjson
import pytest

from exchange.poison import HARMLESS, LARGE_BYTES, MANGLED, STRAYS, mangled, stray
from marketdata.errors import WireError
from marketdata.wire import Decoder
from tests.wire_frames import delta


@pytest.mark.parametrize("name", STRAYS)
def test_no_stray_reads_as_market_data(name: str) -> None:
    """A stray that could be taken for a change would be a change, not poison."""
    frame = stray(name, 3)
    try:
        event = Decoder().decode(frame)
    except WireError:
        return
    assert type(event).__name__ == "Unknown"


@pytest.mark.parametrize("name", MANGLED)
def test_only_a_harmless_mangled_frame_still_tells_its_change(name: str) -> None:
    """Else the truth log would call a change lost that was told, or the reverse."""
    whole = delta(7, sid=2)
    decoder = Decoder()
    expected = decoder.decode(whole)
    try:
        event = decoder.decode(mangled(name, whole))
    except WireError:
        assert name not in HARMLESS
        return
    assert (event == expected) == (name in HARMLESS)
    assert name in HARMLESS or type(event).__name__ == "Unknown"


def test_large_means_sixteen_mebibytes() -> None:
    """The size that the task of the frame names."""
    assert len(stray("large", 1)) > LARGE_BYTES == 16 * 1024 * 1024
    assert len(mangled("large_change", delta(7, sid=2))) > LARGE_BYTES


def test_a_mangled_frame_keeps_its_number_where_it_is_json() -> None:
    """The number is used up, whatever became of the change."""
    row = orjson.loads(mangled("no_price", delta(7, sid=2)))
    assert (row["sid"], row["seq"]) == (2, 7)
    assert "price_dollars" not in row["msg"]
