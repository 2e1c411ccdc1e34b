"""The lake on Spark: many markets at once, by the same code that answers for one.

Purpose: `table` is a DataFrame over the very objects of a pinned version. `books_at`, `books` and
`bars` spread markets over the executors, each of which opens the lake and asks `Lake`; `verify`
spreads the separate verifier. Nothing is computed twice in another way.

What holds: every executor reads the version that the driver pinned, by number and SHA-256; another
one is refused. Gaps are treated as everywhere (`on_gap`): with "raise" the job fails and says why.

Does not do: sessions, clusters. Executors need `kalshilake`, the driver `kalshilake[spark]`; paths
are given to executors as they are, so a directory has to be there on each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any, Final

import pyarrow as pa

from kalshilake.bars import BARS, Source
from kalshilake.ddl import hive_type
from kalshilake.moments import Every, Moment
from kalshilake.read import Lake, Markets, OnGap, open_lake
from kalshilake.schema import LEVELS, TIME, spec_of
from kalshilake.series import BOOKS, named
from kalshilake.verify import verify as verify_alone
from marketdata.errors import LakeError

BOOK: Final = pa.schema(
    [
        pa.field("market_ticker", pa.string(), nullable=False),
        pa.field("at", TIME, nullable=False),
        pa.field("epoch", pa.int32(), nullable=False),
        pa.field("market_seq", pa.int64(), nullable=False),
        pa.field("book_hash", pa.string(), nullable=False),  # 16 hex digits
        pa.field("yes", LEVELS, nullable=False),  # best first
        pa.field("no", LEVELS, nullable=False),
        pa.field("coverage", pa.string(), nullable=False),
    ]
)
FINDING: Final = pa.schema([("key", pa.string()), ("problem", pa.string())])
MARKETS_A_TASK: Final = 8


@dataclass(frozen=True, slots=True)
class _Pinned:
    """A version of a lake, to be opened wherever a task runs."""

    location: str
    version: int
    sha256: str

    @classmethod
    def of(cls, lake: Lake, location: str) -> _Pinned:
        return cls(location, lake.version, lake.sha256)

    def open(self) -> Lake:
        """Raises LakeError where another lake lies at this place."""
        lake = open_lake(self.location, self.version)
        if lake.sha256 != self.sha256:
            raise LakeError(
                f"version {self.version} of {self.location} is another one on this machine",
                hint="executors must see the driver's lake: use S3, or a directory that all share",
            )
        return lake


def table(session: Any, location: str, name: str, *, version: int | None = None) -> Any:
    """A DataFrame over one table of the pinned version, with Spark's own push-down.

    Raises:
        LakeError: no lake, no such version or table.
    """
    lake = open_lake(location, version)
    place = lake.store.location.replace("s3://", "s3a://", 1)
    paths = [f"{place}/{lake.reader.pinned_key(r)}" for r in lake.records(name) if r.rows]
    if not paths:
        return session.createDataFrame([], _ddl(spec_of(name).schema))
    return session.read.parquet(*paths)


def books_at(
    location: str,
    instants: Any,
    *,
    on_gap: OnGap = "raise",
    version: int | None = None,
) -> Any:
    """BOOK: `Lake.book` at each row of `instants`, a DataFrame with market_ticker and at."""
    pinned = _Pinned.of(open_lake(location, version), location)
    wanted = instants.select("market_ticker", "at").repartition("market_ticker")
    ordered = wanted.sortWithinPartitions("market_ticker", "at")
    return ordered.mapInArrow(partial(_books_at, pinned, on_gap), _ddl(BOOK))


def books(
    session: Any,
    location: str,
    market: Markets = None,
    start: Moment | None = None,
    end: Moment | None = None,
    *,
    every: Every = "1s",
    depth: int = 10,
    on_gap: OnGap = "raise",
    version: int | None = None,
) -> Any:
    """`Lake.books` of every market, spread over the executors: series.BOOKS."""
    ask = partial(_books, start=start, end=end, every=every, depth=depth, on_gap=on_gap)
    return _spread(session, location, version, market, ask, BOOKS)


def bars(
    session: Any,
    location: str,
    market: Markets = None,
    start: Moment | None = None,
    end: Moment | None = None,
    *,
    every: Every = "1m",
    source: Source = "trades",
    on_gap: OnGap = "raise",
    version: int | None = None,
) -> Any:
    """`Lake.bars` of every market, spread over the executors: bars.BARS."""
    ask = partial(_bars, start=start, end=end, every=every, source=source, on_gap=on_gap)
    return _spread(session, location, version, market, ask, BARS)


def verify(session: Any, location: str, parts: int) -> Any:
    """FINDING: what the separate verifier finds, by `parts` tasks of some markets each.

    Each task reads every object of changes, keyframes and coverage: more tasks are faster by the
    part that judges rows, not by the part that reads them.
    """
    shares = session.createDataFrame([(n,) for n in range(parts)], "n int")
    spread = shares.repartitionByRange(parts, "n")
    return spread.mapInArrow(partial(_verify, location, parts), _ddl(FINDING)).distinct()


# -- on the executors ------------------------------------------------------------------------------

_Batches = Iterator[pa.RecordBatch]
_Ask = Callable[[Lake, str], pa.Table]


def _spread(
    session: Any, location: str, version: int | None, market: Markets, ask: _Ask, schema: pa.Schema
) -> Any:
    """What `ask` gives of each market."""
    lake = open_lake(location, version)
    names = named(lake, market)
    if not names:
        return session.createDataFrame([], _ddl(schema))
    tasks = session.createDataFrame([(n,) for n in names], "market_ticker string")
    spread = tasks.repartition(-(-len(names) // MARKETS_A_TASK), "market_ticker")
    return spread.mapInArrow(partial(_asked, _Pinned.of(lake, location), ask), _ddl(schema))


def _asked(pinned: _Pinned, ask: _Ask, batches: _Batches) -> _Batches:
    lake = pinned.open()
    for batch in batches:
        for name in batch.column("market_ticker").to_pylist():
            yield from ask(lake, name).to_batches()


def _books(lake: Lake, name: str, *, start: Any, end: Any, **how: Any) -> pa.Table:
    return lake.books(name, start, end, **how)


def _bars(lake: Lake, name: str, *, start: Any, end: Any, **how: Any) -> pa.Table:
    return lake.bars(name, start, end, **how)


def _books_at(pinned: _Pinned, on_gap: OnGap, batches: _Batches) -> _Batches:
    lake = pinned.open()
    for batch in batches:
        names = batch.column("market_ticker").to_pylist()
        moments = batch.column("at").cast(pa.int64()).to_pylist()
        rows = [_row(lake, n, us, on_gap) for n, us in zip(names, moments, strict=True)]
        yield from pa.Table.from_pylist(rows, schema=BOOK).to_batches()


def _row(lake: Lake, name: str, at_us: int, on_gap: OnGap) -> dict[str, Any]:
    view = lake.book(name, at_us, on_gap=on_gap)
    return {
        "market_ticker": name, "at": at_us, "epoch": view.epoch, "market_seq": view.market_seq,
        "book_hash": f"{view.book_hash:016x}", "yes": _levels(view.yes_bids),
        "no": _levels(view.no_bids), "coverage": view.status,
    }  # fmt: skip


def _levels(side: Iterable[tuple[int, int]]) -> list[dict[str, Decimal]]:
    return [{"price": Decimal(p).scaleb(-6), "size": Decimal(q).scaleb(-2)} for p, q in side]


def _verify(location: str, parts: int, batches: _Batches) -> _Batches:
    for batch in batches:
        for n in batch.column("n").to_pylist():
            found = verify_alone(location, share=(n, parts)).findings
            rows = [{"key": f.key, "problem": f.problem} for f in found]
            yield from pa.Table.from_pylist(rows, schema=FINDING).to_batches()


def _ddl(schema: pa.Schema) -> str:
    """A schema in Spark's words, which are Hive's."""
    return ", ".join(f"`{f.name}` {hive_type(f.type)}" for f in schema)
