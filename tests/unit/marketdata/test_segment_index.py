"""The index of a segment: what it says, and that it never hides what is there."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketdata import segment
from marketdata.errors import SegmentError
from marketdata.segment_index import TIME_STEP_BYTES, from_form, index_of, ticker_of, to_form

TICKERS = ("KXA-26NOV-T1.5", "KXB", "KXC-é")


def frame(ticker: str | None, size: int = 0) -> bytes:
    msg = {"price_dollars": "0.1", "pad": "x" * size} | (
        {"market_ticker": ticker} if ticker else {}
    )
    return json.dumps({"type": "t", "msg": msg}, ensure_ascii=False).encode()


def body_of(*records: tuple[int, list[bytes]]) -> bytes:
    body, ordinal = segment.encode_header(1), 0
    for received_ns, frames in records:
        body += segment.encode_record(
            segment.KIND_FRAMES, segment.encode_frames(7, ordinal, received_ns, None, frames)
        )
        body += segment.encode_record(segment.KIND_CONTROL, b'{"k":"note"}')
        ordinal += len(frames)
    return body


def test_it_tells_times_markets_and_whose_bytes_it_is_of() -> None:
    body = body_of((50, [frame("KXB"), frame(None)]), (60, [frame("KXA"), frame("KXB")]))
    index = index_of(body)
    assert (index.records, index.frames, index.first_ns, index.last_ns) == (4, 4, 50, 60)
    assert index.plain_sha256 == hashlib.sha256(body).hexdigest()
    first, count = index.markets["KXB"]
    assert (first, count) == (segment.HEADER_BYTES, 2)
    assert index.markets["KXA"][0] > first
    assert from_form(json.loads(json.dumps(to_form(index)))) == index


def test_a_time_is_noted_for_every_stretch_of_bytes() -> None:
    step = TIME_STEP_BYTES // 2 + 1
    index = index_of(body_of(*((n, [frame("KXA", step)]) for n in range(1, 8))))
    assert [ns for ns, _ in index.times] == [1, 3, 5, 7]
    offsets = [offset for _, offset in index.times]
    assert offsets == sorted(offsets)


@given(
    st.lists(
        st.tuples(st.integers(1, 100), st.lists(st.sampled_from((*TICKERS, None)), max_size=4)),
        max_size=12,
    ),
    st.sampled_from(TICKERS),
    st.integers(0, 101),
    st.integers(0, 101),
)
def test_a_segment_that_holds_it_is_never_left_shut(
    records: list[tuple[int, list[str | None]]], ticker: str, since: int, until: int
) -> None:
    """Times may step back; the answer may be `maybe` too often, never `no` wrongly."""
    body = body_of(*((ns, [frame(t) for t in tickers]) for ns, tickers in records))
    holds = any(since <= ns < until and ticker in tickers for ns, tickers in records)
    index = index_of(body)
    if holds:
        assert index.may_hold(ticker, since, until)
        assert index.may_hold(None, since, until)
    assert not index.may_hold("KXNONE", since, until)


@pytest.mark.parametrize("text", [b"{}", b'{"market_ticker":5}', b'{"market_ticker":"', b"\xff"])
def test_frames_without_a_market_have_none(text: bytes) -> None:
    assert ticker_of(text) is None


@pytest.mark.parametrize("change", [{"format": 2}, {"times": 3}, {"markets": {"A": 1}}])
def test_a_damaged_form_is_refused(change: dict[str, object]) -> None:
    form = json.loads(json.dumps(to_form(index_of(body_of((1, [frame("KXA")]))))))
    with pytest.raises(SegmentError, match="index"):
        from_form(form | change)
    with pytest.raises(SegmentError, match="damaged"):
        from_form({"format": 1})
