"""What a sealed segment holds, by time and by market, so that a reader can leave it shut.

Purpose: bytes of a segment -> SegmentIndex, and its JSON form.
Source of the markets: the quoted value behind `"market_ticker":` in a frame, found without decoding
it. Such a frame may still be one that nobody could decode, and a list of tickers in a reply is not
looked into: the index says where a market's own frames are, no more.
Invariants: the index is a function of the segment's bytes; `plain_sha256` tells which.
Does not do: files (runtime.spool_index), decoding frames (wire).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from marketdata.errors import SegmentError
from marketdata.segment import HEADER_BYTES, KIND_FRAMES, decode_frames, scan

FORMAT: Final = 1
TIME_STEP_BYTES: Final = 1024 * 1024
"""A time is noted about every so many bytes."""
_TICKER: Final = re.compile(rb'"market_ticker"\s*:\s*"([^"\\]{1,200})"')


@dataclass(frozen=True, slots=True)
class SegmentIndex:
    """`times`: (received_ns, offset of a record that begins then), ascending by offset.
    `markets`: ticker -> (offset of the first record with a frame of it, number of frames)."""

    plain_bytes: int
    plain_sha256: str
    records: int
    frames: int
    first_ns: int
    last_ns: int
    times: tuple[tuple[int, int], ...]
    markets: Mapping[str, tuple[int, int]]

    def may_hold(self, ticker: str | None, since_ns: int, until_ns: int) -> bool:
        """Whether frames of the market (None: any) received in [since, until) may be in it."""
        in_time = self.first_ns < until_ns and self.last_ns >= since_ns
        return in_time and (ticker is None or ticker in self.markets)


def ticker_of(frame: bytes | memoryview) -> str | None:
    """The market that a frame names first, found without decoding it."""
    found = _TICKER.search(frame)
    return None if found is None else found[1].decode("utf-8", "replace")


def index_of(body: bytes) -> SegmentIndex:
    """The index of a segment's uncompressed bytes, header included."""
    records = frames = first_ns = last_ns = 0
    times: list[tuple[int, int]] = []
    markets: dict[str, tuple[int, int]] = {}
    for record in scan(body, HEADER_BYTES):
        records += 1
        if record.kind != KIND_FRAMES:
            continue
        batch = decode_frames(record.payload)
        frames += len(batch.frames)
        if not batch.received_ns:
            continue
        low_ns, high_ns = min(batch.received_ns), max(batch.received_ns)
        first_ns = min(first_ns, low_ns) if first_ns else low_ns
        last_ns = max(last_ns, high_ns)
        if not times or record.offset - times[-1][1] >= TIME_STEP_BYTES:
            times.append((low_ns, record.offset))
        for frame in batch.frames:
            ticker = ticker_of(frame)
            if ticker is not None:
                at, count = markets.get(ticker, (record.offset, 0))
                markets[ticker] = (at, count + 1)
    digest = hashlib.sha256(body).hexdigest()
    return SegmentIndex(
        len(body), digest, records, frames, first_ns, last_ns, tuple(times), markets
    )


def to_form(index: SegmentIndex) -> dict[str, Any]:
    """The JSON-able value of an index."""
    return {"format": FORMAT, **asdict(index)}


def from_form(form: Mapping[str, Any]) -> SegmentIndex:
    """The index of `to_form`. Raises SegmentError where it is not one."""
    try:
        if form["format"] != FORMAT:
            raise SegmentError(f"a segment's index has format {form['format']}, not {FORMAT}")
        return SegmentIndex(
            int(form["plain_bytes"]),
            str(form["plain_sha256"]),
            int(form["records"]),
            int(form["frames"]),
            int(form["first_ns"]),
            int(form["last_ns"]),
            tuple((int(ns), int(offset)) for ns, offset in form["times"]),
            {str(t): (int(at), int(count)) for t, (at, count) in form["markets"].items()},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SegmentError(f"a segment's index is damaged: {error}") from error
