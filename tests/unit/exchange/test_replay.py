"""Replay: recorded values on one time axis, side by side, with holes as holes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exchange.replay import ReplaySource, replay_source
from exchange.timeline import (
    DeltaItem,
    EmptySnapshotItem,
    HoleEndItem,
    HoleStartItem,
    Item,
    StatusItem,
    TickerItem,
)
from marketdata.errors import CaptureFormatError
from tests.recorded import captures, recorded

SECOND_US = 1_000_000
START_US = 1_788_000_000_000_000  # 2026-08-29T10:40:00Z


def row(conn: int, at_us: int, frame: dict[str, Any]) -> str:
    return json.dumps({"recv_ns": (START_US + at_us) * 1000, "conn": conn, "frame": frame}) + "\n"


def snapshot(seq: int, yes: list[list[str]], ticker: str) -> dict[str, Any]:
    msg: dict[str, Any] = {"market_ticker": ticker, "market_id": f"id-{ticker}"}
    if yes:
        msg["yes_dollars_fp"] = yes
    return {"type": "orderbook_snapshot", "sid": 2, "seq": seq, "msg": msg}


def delta(seq: int, ts: str, ticker: str, change: str = "1.00") -> dict[str, Any]:
    msg = {"market_ticker": ticker, "market_id": f"id-{ticker}", "price_dollars": "0.4000"}
    msg |= {"delta_fp": change, "side": "yes", "ts": ts}
    return {"type": "orderbook_delta", "sid": 2, "seq": seq, "msg": msg}


def ticker_frame(ticker: str) -> dict[str, Any]:
    msg = {"market_ticker": ticker, "market_id": f"id-{ticker}", "ts": 1_788_000_000}
    msg |= {"ts_ms": 1_788_000_000_250, "time": "2026-08-29T10:40:00.25Z", "volume_fp": "1.00"}
    return {"type": "ticker", "sid": 1, "msg": msg}


def write_capture(path: Path, ticker: str = "KXA-1-T1") -> Path:
    """Two connections, a hole of ten seconds, the recorder's clock 300 ms late."""
    rows = [
        row(1, 300_000, snapshot(1, [["0.4000", "5.00"]], ticker)),
        row(1, 400_000, delta(2, "2026-08-29T10:40:00.1Z", ticker)),
        row(1, 500_000, ticker_frame(ticker)),
        row(1, 550_000, delta(3, "2026-08-29T10:40:00.15Z", ticker)),
        row(1, 2_400_000, snapshot(4, [], ticker)),
        row(2, 12_400_000, snapshot(1, [["0.2000", "1.00"]], ticker)),
        row(2, 12_500_000, delta(2, "2026-08-29T10:40:12.2Z", ticker)),
    ]
    path.write_text("".join(rows))
    return path


def kinds(items: list[Item]) -> list[str]:
    return [type(item).__name__.removesuffix("Item") for item in items]


def test_frames_without_engine_time_are_placed_between_the_deltas(tmp_path: Path) -> None:
    """A recorder's clock may be wrong by hundreds of ms; engine time rules, order is kept."""
    source = replay_source(write_capture(tmp_path / "a.jsonl"))
    items = list(source.items())
    assert kinds(items) == [
        *("Delta", "Ticker", "Delta", "EmptySnapshot", "Status"),
        *("HoleStart", "HoleEnd", "Delta"),
    ]
    times = [item.at_us - START_US for item in items]
    assert times[:3] == [100_000, 150_000, 150_000]  # the ticker not after the next delta
    assert times[3] == 150_000 + 1_850_000  # by the recorder's clock after the last delta
    assert times == sorted(times)


def test_a_hole_starts_with_the_old_connection_and_ends_with_the_new_book(tmp_path: Path) -> None:
    """Nobody may claim the time between: the truth needs both ends and the book after it."""
    items = list(replay_source(write_capture(tmp_path / "a.jsonl")).items())
    start = next(item for item in items if isinstance(item, HoleStartItem))
    end = next(item for item in items if isinstance(item, HoleEndItem))
    assert start.at_us < end.at_us == start.until_us == START_US + 12_100_000
    assert end.books == {0: ([(200_000, 100)], [])}


def test_captures_side_by_side_share_one_start_and_clashing_tickers_are_told_apart(
    tmp_path: Path,
) -> None:
    """Whole seconds only: the fractions of `ts` stay as recorded."""
    first = write_capture(tmp_path / "a.jsonl").read_text()
    later = first.replace("2026-08-29", "2026-08-31").replace("17880000", "17881728")
    (tmp_path / "b.jsonl").write_text(later)
    source = replay_source(tmp_path)
    assert [market.ticker for market in source.markets] == ["KXA-1-T1", "KXA-1-T1.2"]
    assert len({market.market_id for market in source.markets}) == 2
    deltas = [item for item in source.items() if isinstance(item, DeltaItem)]
    by_market = [[d.exchange_us for d in deltas if d.market == number] for number in (0, 1)]
    assert by_market[0] == by_market[1]
    tickers = [json.loads(item.msg) for item in source.items() if isinstance(item, TickerItem)]
    assert {msg["market_ticker"] for msg in tickers} == {"KXA-1-T1", "KXA-1-T1.2"}
    assert {msg["ts_ms"] for msg in tickers} == {1_788_000_000_250}
    assert {msg["time"] for msg in tickers} == {"2026-08-29T10:40:00.25Z"}
    assert {msg["market_id"] for msg in tickers} == {m.market_id for m in source.markets}


def test_an_empty_play_is_refused(tmp_path: Path) -> None:
    """A directory without captures."""
    with pytest.raises(CaptureFormatError):
        replay_source(tmp_path)


def replayed_books(source: ReplaySource) -> list[tuple[dict[int, int], dict[int, int]]]:
    books = [(dict(market.yes), dict(market.no)) for market in source.markets]
    for item in source.items():
        if isinstance(item, DeltaItem):
            side = books[item.market][item.side]
            side[item.price] = side.get(item.price, 0) + item.delta
            assert side[item.price] >= 0
        elif isinstance(item, HoleEndItem):
            for number, (yes, no) in item.books.items():
                books[number] = (dict(yes), dict(no))
    return books


def test_a_recorded_capture_keeps_order_and_closes_on_an_empty_book() -> None:
    """All recorded closes are of kind (a): the deltas alone empty the book."""
    file = recorded("ws_btc15m", "kxbtc15m_20260513T155623Z.jsonl.gz")
    source = replay_source(file)
    items = list(source.items())
    assert [i.at_us for i in items] == sorted(i.at_us for i in items)
    deltas = [i for i in items if isinstance(i, DeltaItem)]
    assert len(deltas) == source.events_expected == 45_602
    assert sum(isinstance(i, EmptySnapshotItem) for i in items) == 1
    assert sum(isinstance(i, StatusItem) for i in items) == 1
    assert not any(any(side.values()) for side in replayed_books(source)[0])


def test_all_captures_beside_each_other_keep_every_event() -> None:
    """Three captures as three (or more) markets of one exchange; none loses a delta."""
    files = captures(3)
    if not files:
        pytest.skip("recorded data are not on this machine")
    from exchange.capture import scan_capture

    source = ReplaySource([scan_capture(file) for file in files])
    alone = [sum(isinstance(i, DeltaItem) for i in replay_source(f).items()) for f in files]
    together = [item for item in source.items() if isinstance(item, DeltaItem)]
    assert len(together) == sum(alone)
    starts = {item.market: item.at_us for item in reversed(together)}
    assert max(starts.values()) - min(starts.values()) < 60 * SECOND_US
