"""Recorded captures: both formats are read, everything else is refused in one clear line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from exchange.capture import capture_files, read_frames, scan_capture
from marketdata.errors import CaptureFormatError
from tests.recorded import captures

BASE_NS = 1_788_000_000_000_000_000


def snapshot(seq: int, yes: list[list[str]], ticker: str = "KXA-1-T1") -> dict[str, Any]:
    msg: dict[str, Any] = {"market_ticker": ticker, "market_id": f"id-{ticker}"}
    if yes:
        msg["yes_dollars_fp"] = yes
    return {"type": "orderbook_snapshot", "sid": 1, "seq": seq, "msg": msg}


def delta(seq: int, change: str, ts: str = "2026-08-29T10:40:00.5Z", **more: Any) -> dict[str, Any]:
    msg = {
        "market_ticker": "KXA-1-T1",
        "price_dollars": "0.4000",
        "delta_fp": change,
        "side": "yes",
        "ts": ts,
        **more,
    }
    return {"type": "orderbook_delta", "sid": 1, "seq": seq, "msg": msg}


def write_lines(path: Path, frames: list[dict[str, Any]], conn: int = 1) -> Path:
    rows = [
        {"recv_ns": BASE_NS + n * 1000, "conn": frame.pop("conn", conn), "frame": frame}
        for n, frame in enumerate(frames)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


GOOD = [snapshot(1, [["0.4000", "5.00"]]), delta(2, "-2.00"), delta(3, "1.50")]


def test_a_good_capture_tells_markets_events_and_anchors(tmp_path: Path) -> None:
    """What a replay must know before the first frame."""
    capture = scan_capture(write_lines(tmp_path / "a.jsonl.gz", [dict(f) for f in GOOD]))
    assert capture.events == 2
    assert capture.market_ids == {"KXA-1-T1": "id-KXA-1-T1"}
    assert capture.stretches[0].anchors == {"KXA-1-T1": ([(400_000, 500)], [])}


def test_an_emptying_snapshot_counts_as_an_event_an_agreeing_one_does_not(tmp_path: Path) -> None:
    """A close of kind (b) is an event; its second snapshot is an audit."""
    frames = [snapshot(1, [["0.4000", "5.00"]]), snapshot(2, []), snapshot(3, [])]
    assert scan_capture(write_lines(tmp_path / "a.jsonl", frames)).events == 1


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        ([snapshot(1, []), delta(3, "1.00")], "seq goes from 1 to 3"),
        ([snapshot(1, [["0.4000", "1.00"]]), delta(2, "-2.00")], "negative"),
        ([delta(1, "1.00")], "before any snapshot"),
        ([snapshot(1, [["0.4000", "1.00"]]), snapshot(2, [["0.4000", "2.00"]])], "differs"),
        (
            [
                snapshot(1, []),
                delta(2, "1.00", "2026-08-29T10:40:01Z"),
                delta(3, "1.00", "2026-08-29T10:40:00Z"),
            ],
            "back in exchange time",
        ),
        ([snapshot(1, []), delta(2, "1.005")], "no exact integer form"),
        ([snapshot(1, []), delta(2, "1.00", side="maybe")], "misses 'maybe'"),
        ([{"type": "ticker", "sid": 1, "msg": {}}], "holds no orderbook_snapshot"),
        (
            [snapshot(1, []), {**snapshot(1, []), "conn": 2}, {**delta(2, "1.00"), "conn": 1}],
            "returns to connection 1",
        ),
    ],
)
def test_a_capture_that_contradicts_itself_is_refused(
    tmp_path: Path, frames: list[dict[str, Any]], said: str
) -> None:
    """A truth log made from it would be false (EXCH-3)."""
    path = write_lines(tmp_path / "a.jsonl", [dict(frame) for frame in frames])
    with pytest.raises(CaptureFormatError, match=said):
        scan_capture(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b"no json\n", "frame 1: is not JSON"),
        ("a.jsonl", b"[1]\n", "is a list"),
        ("a.jsonl", b'{"ts": 1, "price": 2}\n', r"keys \['price', 'ts'\]"),
        ("a.jsonl.gz", b"not gzip", "cannot be read as gzip"),
        ("a.json", b"{}", "no list of frames was found, but keys"),
        ("a.json", b"[]", "no list of frames was found, but list"),
        ("a.json", b"{", "is not JSON"),
        ("a.json", b'{"frames": [{"at": 1}]}', r"frame 1: is an object with the keys \['at'\]"),
    ],
)
def test_an_unknown_format_is_one_line_naming_what_was_seen(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    """The user gave the file: the message must help him."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CaptureFormatError, match=said) as caught:
        list(read_frames(path))
    first, hint = str(caught.value).split("\n")
    assert first.startswith(name)
    assert hint.startswith("hint: known are")


def test_a_truncated_gzip_is_refused(tmp_path: Path) -> None:
    """Half a download must not become half a truth."""
    path = write_lines(tmp_path / "a.jsonl.gz", [dict(frame) for frame in GOOD] * 1)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(CaptureFormatError, match="gzip"):
        scan_capture(path)


def test_a_directory_gives_its_captures_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    """Other files beside them are left alone."""
    with pytest.raises(CaptureFormatError, match="no capture in this directory"):
        capture_files(tmp_path)
    (tmp_path / "README.md").write_text("x")
    file = write_lines(tmp_path / "a.jsonl", [dict(frame) for frame in GOOD])
    assert capture_files(tmp_path) == [file]
    assert capture_files(file) == [file]
    with pytest.raises(CaptureFormatError, match="no such file"):
        capture_files(tmp_path / "absent")


def test_the_smallest_recorded_captures_pass_the_check() -> None:
    """Both recorded formats, as they lie in the data folder."""
    files = captures(3)
    if not files:
        pytest.skip("recorded data are not on this machine")
    for file in files:
        capture = scan_capture(file)
        assert capture.events > 0
        assert all(stretch.anchors for stretch in capture.stretches)
