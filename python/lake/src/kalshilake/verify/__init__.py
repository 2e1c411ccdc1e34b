"""Checks a Kalshi Tape lake without trusting the code that wrote it.

This folder imports nothing but the standard library and pyarrow. It can be handed out alone, with
the format document (docs/formats.md, sections 2 and 4): `python -m verify LAKE` where it lies.

What is checked, and by what an edit is found, each time with the object's name:
  bytes      SHA-256, size and footer of every listed object; the SHA-256 of its body that each
             object carries itself; the checksum of every page. A flipped byte, a cut file.
  lists      every version's seal, number and SHA-256 of the version before; no object may vanish
             from the list; an object that changed must have left its old bytes in superseded/; the
             commit record beside each object. A removed entry, an edited version, an object that
             was rewritten with the list fixed up in one place.
  layout     columns, order, repeated keys, rows outside their hour, counts, statistics; an object
             that joins hours has as many rows of each as that hour's own object, which is kept.
  tape       market_seq without hole or repeat from 1 in each (market, epoch), over all hours; every
             keyframe's hash is that of its levels; keyframe + deltas = next keyframe, level by
             level; no level below zero. A removed row group, a removed or changed delta, even where
             every list and hash was made to fit.
  coverage   intervals inside their hour, without hole or overlap between them; nothing complete
             that nobody proves, across two epochs, over an event of another epoch, over an
             ambiguous or disputed event, past the watermark, or for tickers.

What cannot be found here, because the lake does not hold what it would take:
  - somebody who rewrites objects, records and all later versions consistently and leaves no
    contradiction in the tape. Keep the SHA-256 of a version elsewhere and give it as --sha256: then
    no byte of that version or of one before it can have changed. The root of a day (`tape root`)
    says the same of that day alone: --root 2026-05-13:SHA256.
  - that rows were never received (that is what coverage states), wrong times of receipt, prices of
    trades, or a change to the dark rim of coverage where the tape has no event to contradict it.
  - a delta changed by such a person where no keyframe stands on both sides of it: before the first
    one of its epoch, or between the last one before a reset and the reset.
  - the last events of an epoch removed together with every keyframe after them.

Exit code 0: nothing found. 1: something found. 2: the lake could not be read at all.
"""

from __future__ import annotations

import argparse
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa

from .claims import Claims
from .layout import load
from .lists import Place, check_strays, check_versions, end_of
from .replay import Tape, load_keyframes
from .report import Finding, NoLakeError, Report, as_json, describe
from .roots import DAY, Roots

__all__ = [
    "Finding",
    "NoLakeError",
    "Report",
    "as_json",
    "cited_roots",
    "describe",
    "main",
    "verify",
]


def verify(
    location: str,
    *,
    sha256: str | None = None,
    roots: Mapping[str, str] | None = None,
    filesystem: Any = None,
    coverage: bool = False,
    share: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Report:
    """Check everything. `sha256`: of a version, kept elsewhere. `roots`: of days (YYYY-MM-DD), kept
    elsewhere. `coverage`: tell what is claimed, too. `share`: (n, of) checks the markets of one of
    so many machines; what all find together is what one finds alone. `progress`: told of each
    stretch of hours that is done, and of how many there are. Raises NoLakeError, OSError.
    """
    report = Report(str(location))
    place = Place(str(location), filesystem)
    if not any(k.startswith("manifest/v") for k in place.sizes):
        raise NoLakeError(f"{location} holds no lake: it has no manifest/v*.json")
    cited = Roots(roots or {})
    head, known = check_versions(place, report, cited.see)
    cited.tell(report)
    if sha256 is not None and sha256.lower() not in known:
        report.found("manifest/", f"no version has the SHA-256 {sha256}: history was rewritten")
    entries = {str(e["key"]): e for e in head.get("objects", [])}
    check_strays(place, report, entries)
    claims = Claims(report)
    spans = _spans(list(entries.values()))
    for span in spans[share[0] :: share[1]]:
        for name in ("trades", "tickers", "markets", "events"):
            for entry in span.get(name, []):
                plain = load(place, report, entry)
                for _ in plain.groups() if plain else ():
                    pass
    _replay(place, report, claims, spans, share, coverage=coverage, progress=progress)
    report.coverage = claims.coverage()
    return report


def _replay(
    place: Place,
    report: Report,
    claims: Claims,
    spans: list[_Span],
    share: tuple[int, int],
    *,
    coverage: bool,
    progress: Callable[[int, int], None],
) -> None:
    """Changes, keyframes and coverage, one stretch of hours after the other."""
    tape = Tape(report)
    ahead = _keyframes(place, report, spans[:1], share)
    for i, span in enumerate(spans):
        following = _keyframes(place, report, spans[i + 1 : i + 2], share)
        tape.keyframes(ahead)
        tape.keyframes(following, ahead=True)
        told = _coverage(place, report, span.get("coverage", []))
        if told is not None:
            rows = _rows(told[1], share)
            claims.check(told[0], rows)
            if coverage:
                claims.join(rows)
        for entry in span.get("orderbook_deltas", []):
            deltas = load(place, report, entry)
            if deltas is None:
                continue
            groups = (_rows(group, share) for group in deltas.groups())
            for market, events in tape.absorb(deltas.key, groups):
                if told is not None:
                    claims.hold(told[0], market, events)
            if told is None:
                report.found(deltas.key, "its hour has deltas and no coverage")
        ahead = following
        progress(i + 1, len(spans))
    tape.finish()


_Span = dict[str, list[dict[str, Any]]]  # table: its objects, in time order


def _spans(entries: list[dict[str, Any]]) -> list[_Span]:
    """Stretches of hours that no object reaches over the ends of, ascending: an hour each, or what
    one object joins."""
    made: list[_Span] = []
    end_us = 0
    for entry in sorted(entries, key=lambda e: int(e["hour_us"])):
        if not made or int(entry["hour_us"]) >= end_us:
            made.append({})
        end_us = max(end_us, end_of(entry))
        made[-1].setdefault(str(entry["table"]), []).append(entry)
    return made


def _keyframes(
    place: Place, report: Report, spans: list[_Span], share: tuple[int, int]
) -> list[Any]:
    """Those of a share in these stretches: the market is what each begins with."""
    found = [
        frame
        for span in spans
        for frame in load_keyframes(place, report, span.get("orderbook_snapshots", []))
    ]
    return [frame for frame in found if _owned(frame[0], share)]


def _coverage(
    place: Place, report: Report, entries: list[dict[str, Any]]
) -> tuple[str, pa.Table] | None:
    """(name of the first object, all rows in order) of a stretch; None where not all was read."""
    tables = []
    for entry in entries:
        loaded = load(place, report, entry)
        rows = loaded.table() if loaded else None
        if rows is None:
            return None
        tables.append(rows)
    if not tables:
        return None
    rows = pa.concat_tables(tables).combine_chunks()
    if len(tables) > 1:
        order = [(name, "ascending") for name in ("market_ticker", "channel", "from_ts")]
        rows = rows.sort_by(order)
    return str(entries[0]["key"]), rows


def _owned(market: str, share: tuple[int, int]) -> bool:
    return zlib.crc32(market.encode()) % share[1] == share[0]


def _rows(rows: pa.Table, share: tuple[int, int]) -> pa.Table:
    """Those of the markets of a share."""
    if share[1] == 1 or not rows.num_rows:
        return rows
    names = rows.column(0).to_pylist()
    mine = {name for name in set(names) if _owned(name, share)}
    return rows.filter(pa.array([name in mine for name in names], pa.bool_()))


def cited_roots(texts: Iterable[str]) -> dict[str, str]:
    """day -> SHA-256 of arguments such as 2026-05-13:SHA256. Raises ValueError for others."""
    made: dict[str, str] = {}
    for text in texts:
        day, _, root = text.partition(":")
        if not DAY.fullmatch(day) or not re.fullmatch(r"[0-9a-fA-F]{64}", root):
            raise ValueError(f"{text!r} is not DAY:SHA256, such as 2026-05-13:0123...cdef")
        made[day] = root
    return made


def main(arguments: Iterable[str] | None = None, write: Callable[[str], Any] = print) -> int:
    """The command line; the exit code is in the module's docstring."""
    parser = argparse.ArgumentParser(description="Check a Kalshi Tape lake.")
    parser.add_argument("lake", help="directory or s3://bucket/prefix")
    parser.add_argument("--sha256", help="SHA-256 of a version that was kept elsewhere")
    parser.add_argument("--root", action="append", default=[], help="DAY:SHA256, kept elsewhere")
    parser.add_argument("--coverage", action="store_true", help="tell what is claimed, too")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    try:
        report = verify(
            chosen.lake, sha256=chosen.sha256, roots=cited_roots(chosen.root),
            coverage=chosen.coverage,
        )  # fmt: skip
    except (NoLakeError, OSError, ValueError) as e:
        write(f"verify: {e}")
        return 2
    for line in [as_json(report)] if chosen.json else describe(report):
        write(line)
    return 0 if report.ok else 1
