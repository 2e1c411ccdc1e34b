"""Corruptions by the dozen, planted one at a time in a good lake: each is found, and named.

A corruption changes a copy of the lake and gives the text that a finding has to hold: the key of
the object that was touched, or what stands in it. `fix` says how far the forger went afterwards
(tests.lake_tamper); a later step never hides what an earlier one would have shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kalshilake import paths
from kalshilake.verify import verify
from tests import lake_tamper as tamper

HOUR: Final = paths.US_PER_HOUR
Plant = Callable[[Path], str]  # changes the lake; what a finding must hold
Rows = dict[str, list[Any]]
V1, V2 = "manifest/v0000000001.json", "manifest/v0000000002.json"


def deltas(root: Path) -> str:
    return tamper.keys_of(root, "orderbook_deltas")[0]


def in_place(change: Callable[[bytes], bytes], table: str = "orderbook_deltas") -> Plant:
    """Other bytes under an object's key; nothing else is touched."""

    def plant(root: Path) -> str:
        key = tamper.keys_of(root, table)[0]
        (root / key).write_bytes(change((root / key).read_bytes()))
        return key

    return plant


def rows(table: str, change: Callable[[Rows], None], fix: int = 4, says: str = "") -> Plant:
    """Other rows, with all lists made to fit: only what the rows say can tell (`fix` 3 where the
    product's writer refuses to write them). `says`: if another object is named, what of it."""

    def plant(root: Path) -> str:
        key = tamper.keys_of(root, table)[0]

        def edit(before: pa.Table) -> pa.Table:
            columns = before.cast(_plain(before.schema)).to_pydict()
            change(columns)
            return pa.table(columns, schema=_plain(before.schema)).cast(before.schema)

        tamper.rewrite(root, key, edit, fix)
        return says or key

    return plant


def _plain(schema: pa.Schema) -> pa.Schema:
    """Times as integers, so that rows are edited as numbers."""
    return pa.schema(
        [f.with_type(pa.int64()) if pa.types.is_timestamp(f.type) else f for f in schema]
    )


def in_list(change: Callable[[dict[str, Any]], str], *, sealed: bool = True) -> Plant:
    """The newest version edited; `change` gives what a finding must hold."""

    def plant(root: Path) -> str:
        told: list[str] = []
        tamper.edit_version(tamper.newest(root), lambda b: told.append(change(b)), sealed=sealed)
        return told[0]

    return plant


def entry(name: str, make: Callable[[Any], Any]) -> Plant:
    """One field of one object in the newest version, with its seal made to fit."""

    def change(body: dict[str, Any]) -> str:
        first = next(e for e in body["objects"] if e["rows"] and e["table"] == "orderbook_deltas")
        first[name] = make(first[name])
        return str(first["key"])

    return in_list(change)


def at(columns: Rows, **wanted: Any) -> int:
    """The first row in which columns have these values."""
    return next(
        i for i in range(len(columns["market_ticker"]))
        if all(columns[name][i] == value for name, value in wanted.items())
    )  # fmt: skip


def each(columns: Rows, change: Callable[[list[Any]], None]) -> None:
    for values in columns.values():
        change(values)


def unlisted(root: Path) -> str:
    key = deltas(root)
    stray = key.replace("-00.parquet", "-01.parquet")
    (root / stray).write_bytes((root / key).read_bytes())
    return stray


def another_hour(root: Path) -> str:
    first, second = tamper.keys_of(root, "orderbook_deltas")[:2]
    (root / first).write_bytes((root / second).read_bytes())
    return first


def another_table(root: Path) -> str:
    key = deltas(root)
    other = tamper.keys_of(root, "trades")[0]
    tamper.replace_bytes(root, key, (root / other).read_bytes(), 3)
    return key


def gone(root: Path) -> str:
    return without(tamper.keys_of(root, "trades")[0])(root)


def unsealed(root: Path) -> str:
    tamper.edit_version(
        root / V2, lambda b: b.update(watermark_us=b["watermark_us"] + 1), sealed=False
    )
    return V2


def cut_version(root: Path) -> str:
    (root / V2).write_bytes((root / V2).read_bytes()[:-9])
    return V2


def sealed(key: str, make: Callable[[Any], Any], says: str = V2) -> Plant:
    """One field of the newest version, with its seal made to fit."""

    def change(body: dict[str, Any]) -> str:
        body[key] = make(body[key])
        return says

    return in_list(change)


def without(name: str) -> Plant:
    def plant(root: Path) -> str:
        (root / name).unlink()
        return name

    return plant


def record(change: Callable[[dict[str, Any]], None] | None) -> Plant:
    """The commit record beside an object removed, or edited."""

    def plant(root: Path) -> str:
        key = deltas(root)
        beside = root / key.replace(key.rpartition("/")[2], f"_manifest-{key[-13:-11]}.json")
        if change is None:
            beside.unlink()
            return str(beside.relative_to(root))
        body = json.loads(beside.read_bytes())
        change(body)
        beside.write_text(json.dumps(body))
        return key

    return plant


def history(root: Path) -> str:
    """The first version edited and sealed anew, the second left as it was."""
    tamper.edit_version(
        root / V1, lambda b: b.update(watermark_us=b["watermark_us"] - 1), sealed=True
    )
    return V2


def retyped(root: Path) -> str:
    key = deltas(root)
    tamper.rewrite(
        root, key,
        lambda t: t.set_column(
            t.schema.names.index("epoch"), "epoch", t.column("epoch").cast(pa.int64())
        ), 3,
    )  # fmt: skip
    return key


def renamed(root: Path) -> str:
    key = deltas(root)
    tamper.rewrite(
        root, key,
        lambda t: t.rename_columns(["seq" if n == "market_seq" else n for n in t.schema.names]), 3,
    )  # fmt: skip
    return key


def keyframe_level(root: Path) -> str:
    """One contract more in a keyframe, its hash left as it was."""
    key = tamper.keys_of(root, "orderbook_snapshots")[0]

    def edit(before: pa.Table) -> pa.Table:
        sides = before.column("yes").to_pylist()
        row = next(i for i, levels in enumerate(sides) if levels)
        sides[row][0]["size"] += 1
        field = before.schema.field("yes")
        place = before.schema.names.index("yes")
        return before.set_column(place, field, pa.array(sides, field.type))

    tamper.rewrite(root, key, edit, 4)
    return key


def swap_two(c: Rows) -> None:
    """Two neighbours of one epoch change numbers (and so what happened first)."""
    i = next(
        i for i in range(1, len(c["kind"]))
        if (c["market_ticker"][i], c["epoch"][i]) == (c["market_ticker"][i - 1], c["epoch"][i - 1])
        and c["kind"][i] == "delta" and c["kind"][i - 1] == "reset"
    )  # fmt: skip
    for name in ("kind", "side", "price", "delta", "flags"):
        c[name][i], c[name][i - 1] = c[name][i - 1], c[name][i]


def unreset(c: Rows) -> None:
    i = at(c, kind="reset")
    c["flags"][i] &= ~1


def elsewhere(c: Rows) -> None:
    """An event moves to the next market (its place in the order kept as it was)."""
    i = next(
        i for i in range(1, len(c["kind"])) if c["market_ticker"][i] != c["market_ticker"][i - 1]
    )
    c["market_ticker"][i - 1] = c["market_ticker"][i]


def no_kind(c: Rows) -> None:
    c["kind"][len(c["kind"]) // 2] = "change"


def disputed(c: Rows) -> None:
    c["flags"][len(c["flags"]) // 2] |= 128


def negative(c: Rows) -> None:
    """The last change of the hour takes more than there is."""
    i = max(i for i in range(len(c["kind"])) if c["kind"][i] == "delta")
    c["delta"][i] = -abs(c["delta"][i]) - 1_000_000


def next_hour(c: Rows) -> None:
    c["exchange_ts"][-1] += HOUR


def number_twice(c: Rows) -> None:
    c["market_seq"][1] = c["market_seq"][0]


def drop(c: Rows) -> None:
    each(c, lambda v: v.pop(len(v) // 2))


def again(c: Rows) -> None:
    each(c, lambda v: v.insert(1, v[0]))


def backwards(c: Rows) -> None:
    each(c, lambda v: v.reverse())


def hole(c: Rows) -> None:
    i = at(c, status="complete", channel="orderbook")
    each(c, lambda v: v.pop(i))


def overlap(c: Rows) -> None:
    i = at(c, status="complete", channel="orderbook")
    c["from_ts"][i] -= 1


def unproved(c: Rows) -> None:
    c["sources"][at(c, status="complete", channel="orderbook")] = 0


def whole_ticker(c: Rows) -> None:
    i = at(c, channel="ticker", status="unproven")
    c["status"][i], c["sources"][i] = "complete", 7


def new_status(c: Rows) -> None:
    c["status"][at(c, status="complete", channel="orderbook")] = "fine"


def new_channel(c: Rows) -> None:
    c["channel"][-1] = "zeitung"


def other_epoch(c: Rows) -> None:
    c["epoch"][at(c, status="complete", channel="orderbook")] += 1


def cut_short(c: Rows) -> None:
    """A market's whole coverage of the hour left out."""
    market = c["market_ticker"][0]
    keep = [i for i, name in enumerate(c["market_ticker"]) if name != market]
    each(c, lambda v: v.__setitem__(slice(None), [v[i] for i in keep]))


def past(c: Rows) -> None:
    i = at(c, status="dark", channel="orderbook")
    c["to_ts"][i] = c["from_ts"][i]


PLANTED: Final[dict[str, Plant]] = {
    # bytes
    "a bit of a page": in_place(lambda b: b[:60] + bytes([b[60] ^ 16]) + b[61:]),
    "a bit of a footer": in_place(lambda b: b[:-200] + bytes([b[-200] ^ 1]) + b[-199:]),
    "a cut object": in_place(lambda b: b[: len(b) // 2]),
    "an empty object": in_place(lambda _: b""),
    "bytes behind the end": in_place(lambda b: b + b"\0"),
    "a text in its place": in_place(lambda _: b"market,time\n", "coverage"),
    "zeros in its place": in_place(lambda b: bytes(len(b)), "trades"),
    "another hour's object": another_hour,
    "another table's object, lists made to fit": another_table,
    "an object that is gone": gone,
    "an object nobody lists": unlisted,
    # lists
    "an entry removed": in_list(lambda b: str(b["objects"].pop(0)["key"])),
    "an entry twice": sealed("objects", lambda found: [*found, found[-1]]),
    "an edit without a seal": unsealed,
    "a watermark that goes back": sealed("watermark_us", lambda _: 1),
    "a watermark before what is complete": sealed(
        "watermark_us", lambda us: us - HOUR // 2, "past the watermark"
    ),
    "another version before": sealed("previous_sha256", lambda _: "1" * 64),
    "another number": sealed("version", lambda _: 3),
    "history edited": history,
    "a version that is gone": without(V1),
    "a version cut": cut_version,
    "a wrong SHA-256": entry("sha256", lambda _: "0" * 64),
    "a wrong number of rows": entry("rows", lambda n: n + 1),
    "a wrong size": entry("bytes", lambda n: n + 1),
    "a wrong latest time": entry("max_us", lambda n: n - 1),
    "a wrong market": entry("last_market", lambda _: "KX-NONE"),
    "a wrong hour": entry("hour_us", lambda n: n + HOUR),
    "a newer schema": entry("schema", lambda n: n + 1),
    "no commit record": record(None),
    "a commit record of other rows": record(lambda b: b["object"].update(rows=1)),
    # layout
    "a column retyped": retyped,
    "a column renamed": renamed,
    "rows in another order": rows("trades", backwards, 3),
    "a row twice": rows("orderbook_deltas", again, 3),
    "a row of another hour": rows("orderbook_deltas", next_hour, 3),
    # tape
    "a change removed": rows("orderbook_deltas", drop),
    "a number twice": rows("orderbook_deltas", number_twice, 3),
    "a change in another market": rows("orderbook_deltas", elsewhere, 3),
    "two events swapped": rows("orderbook_deltas", swap_two),
    "a reset that is none": rows("orderbook_deltas", unreset),
    "a kind that does not exist": rows("orderbook_deltas", no_kind),
    "a level below zero": rows("orderbook_deltas", negative),
    "a keyframe's level": keyframe_level,
    # coverage
    "an interval removed": rows("coverage", hole, 3),
    "intervals that overlap": rows("coverage", overlap, 3),
    "complete, proved by nobody": rows("coverage", unproved),
    "a complete ticker": rows("coverage", whole_ticker),
    "a status that does not exist": rows("coverage", new_status, 3),
    "a channel that does not exist": rows("coverage", new_channel),
    "complete in another epoch": rows("coverage", other_epoch),
    "complete over a disputed event": rows(
        "orderbook_deltas", disputed, says="complete over a flagged event"
    ),
    "an empty interval": rows("coverage", past, 3),
    "a market without coverage": rows("coverage", cut_short),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_each_planted_corruption_is_found_and_named(name: str, lake_copy: Path) -> None:
    assert verify(str(lake_copy)).findings == [], "it was good before"
    wanted = PLANTED[name](lake_copy)
    found = verify(str(lake_copy)).findings
    assert any(wanted in f.key or wanted in f.problem for f in found), (wanted, found)


def test_rows_written_anew_as_they_were_are_no_corruption(lake_copy: Path) -> None:
    """The control: what plants the corruptions above leaves nothing to find by itself."""
    for table in ("orderbook_deltas", "coverage", "trades"):
        rows(table, lambda _: None)(lake_copy)
    assert verify(str(lake_copy)).findings == []
    assert pq.read_metadata(lake_copy / deltas(lake_copy)).num_rows
