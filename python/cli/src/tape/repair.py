"""`tape repair --from T --to T`: what was late, never read or never received, brought to the tape.

Sources: the gatherers' spools (order books, trades, ticker states, and what they prove) and the
exchange's list of trades by REST. Without `--apply` it only says what would change. docs/repair.md
tells what it promises.

Does not do: deciding (dedup.repair), SQL (dedup.repair_store), the form of the lake (dedup.export).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer

from dedup import repair_store as store
from dedup.columns import joined, picked
from dedup.export import Exporter
from dedup.hours import moment
from dedup.proof import load_evidence
from dedup.repair import REPAIRED, Outcome, Piece, Span, repair_market, subtracted
from dedup.repair_store import Addition, Proof
from dedup.tape_rows import TICKER_ROW, TRADE_ROW, Rows
from gatherer.auth import FileSigner
from gatherer.rest import RestClient, RestError
from kalshilake.moments import moment_us
from kalshilake.store import open_store
from marketdata import coverage, rest_trades
from marketdata.errors import ConfigError, StorageError
from marketdata.rows import SOURCE_REST, TradeFlag
from marketdata.units import US_PER_S
from runtime.clock import Clock
from runtime.postgres import Connection, connect, migrate
from tape.output import guarded
from tape.repair_spool import SpoolContent, read_spool

NOT_FOUND: Final = 404
CONNECT_TRIES: Final = 5
REST_RATE_PER_S: Final = 5.0


@dataclass(slots=True)
class Asked:
    """What somebody wants repaired, from what."""

    production: str
    from_us: int
    to_us: int
    spools: dict[int, Path] = field(default_factory=dict)  # gatherer, from 0 -> folder
    trades: list[dict[str, Any]] = field(default_factory=list)  # bodies as REST gave them
    rest_url: str = ""
    lake: str = ""
    metas: list[str] = field(default_factory=list)
    reason: str = "repair"
    apply: bool = False


@dataclass(slots=True)
class Told:
    """What was found and what was done."""

    added: Addition
    notes: list[str] = field(default_factory=list)
    repair: int = 0
    hours: int = 0
    lake_version: int = 0

    def facts(self) -> dict[str, Any]:
        """For people and programs."""
        return {
            "from": moment(self.added.from_us).isoformat(),
            "to": moment(self.added.to_us).isoformat(),
            **self.added.counts,
            "notes": self.notes,
            "repair": self.repair,
            "hours_exported": self.hours,
            "lake_version": self.lake_version,
        }


async def run_repair(asked: Asked, clock: Clock) -> Told:
    """Find what is missing; with `asked.apply` add it. Again it finds nothing.

    Raises:
        StorageError: the interval, a spool or another writer forbids it.
    """
    low, high = asked.from_us - store.COMPARED_US, asked.to_us + store.COMPARED_US
    contents = {
        g: await asyncio.to_thread(read_spool, path, g, low, high)
        for g, path in sorted(asked.spools.items())
    }
    conn = await connect(asked.production, tries_max=CONNECT_TRIES)
    try:
        await migrate(conn, "production")
        if asked.apply:
            await store.lock(conn)
        await store.check_interval(conn, asked.from_us, asked.to_us)
        told = Told(_empty(asked, contents, clock))
        ids = await store.market_ids(conn)
        for g, content in contents.items():
            await _check_spool(conn, g, content)
        await _books(conn, told, contents, ids)
        await _trades(conn, told, contents, asked, ids)
        await _states(conn, told, contents, ids)
        if asked.apply:
            if not told.added.empty:
                told.repair = await store.commit(conn, told.added)
            await _export(conn, asked, told)
        return told
    finally:
        conn.terminate()


def _empty(asked: Asked, contents: dict[int, SpoolContent], clock: Clock) -> Addition:
    sources = [f"spool {c.meta.spool_uid} of gatherer {g + 1}" for g, c in contents.items()]
    if asked.trades or asked.rest_url:
        sources.append(f"trades by REST from {asked.rest_url}")
    at_us = clock.wall_ns() // 1_000
    return Addition(asked.from_us, asked.to_us, at_us, asked.reason, sources)


async def _check_spool(conn: Connection, gatherer: int, content: SpoolContent) -> None:
    """Runs are numbered by the spool: those of another gatherer tell that it is named wrong."""
    if content.runs & await store.run_ids(conn, gatherer):
        return
    others = await conn.fetch("SELECT DISTINCT gatherer FROM run_progress")
    for g in sorted(r["gatherer"] for r in others):
        if g != gatherer and content.runs & await store.run_ids(conn, g):
            raise StorageError(
                f"spool {content.meta.spool_uid} is that of gatherer {g + 1}, not of gatherer"
                f" {gatherer + 1}"
            )


def _id_of(ticker: str, ids: store.MarketIds, added: Addition, us: int) -> int:
    """Production's id; a market that the tape never had gets the next one."""
    if ticker not in ids:
        ids[ticker] = ids.new(ticker)
        added.markets.append((ids[ticker], ticker, us))
    return ids[ticker]


async def _books(
    conn: Connection, told: Told, contents: dict[int, SpoolContent], ids: store.MarketIds
) -> None:
    """Order books, market by market."""
    added = told.added
    span = added.from_us, added.to_us
    tickers = sorted({t for c in contents.values() for t in c.stretches})
    complete = await _complete(conn, span)
    fits: dict[int, int] = defaultdict(int)
    refusals: dict[int, list[str]] = defaultdict(list)
    for ticker in tickers:
        stretches = [s for c in contents.values() for s in c.stretches.get(ticker, ())]
        pieces: list[Piece] = []
        follows: dict[int, int] = {}
        next_epoch = REPAIRED
        if ticker in ids:
            low, high = span[0] - store.COMPARED_US, span[1] + store.COMPARED_US
            pieces, follows = await store.load_pieces(conn, ids[ticker], low, high)
            next_epoch = await store.next_epoch(conn, ids[ticker])
        found = repair_market(pieces, stretches, span, next_epoch)
        for gatherer, n in found.fitted.items():
            fits[gatherer] += n
        for stretch, why in found.refused:
            refusals[stretch.gatherer].append(f"{ticker}: {stretch.name} {why}")
        _take_books(told, ticker, found, follows, ids, complete, contents)
    for gatherer, content in contents.items():
        if content.stretches and not fits[gatherer]:
            why = refusals[gatherer][0] if refusals[gatherer] else "no event of it is on the tape"
            raise StorageError(
                f"spool {content.meta.spool_uid} does not fit this tape: {why}",
                hint="is it another tape's, or another gatherer's?",
            )
        told.notes += refusals[gatherer]


async def _complete(conn: Connection, span: Span) -> dict[tuple[str, str], list[Span]]:
    """(ticker, channel) -> what coverage calls complete already."""
    evidence = await load_evidence(conn, *span)
    made: dict[tuple[str, str], list[Span]] = defaultdict(list)
    for i in coverage.intervals(evidence, *span):
        if i.status == "complete":
            made[i.ticker, i.channel].append((i.from_us, i.to_us))
    return made


def _take_books(
    told: Told,
    ticker: str,
    found: Outcome,
    follows: dict[int, int],
    ids: store.MarketIds,
    complete: dict[tuple[str, str], list[Span]],
    contents: dict[int, SpoolContent],
) -> None:
    added = told.added
    for stretch, (low, high) in found.left:
        told.notes.append(
            f"{ticker}: {stretch.name} has more from {moment(low).isoformat()} to"
            f" {moment(high).isoformat()}: ask for all of it"
        )
    for fill in found.fills:
        market = _id_of(ticker, ids, added, fill.from_us)
        follows[fill.epoch] = follows.get(fill.behind, 0)
        added.fills.append((market, follows[fill.epoch], fill))
    for stretch, span in found.proofs:
        known = complete[ticker, coverage.ORDERBOOK]
        for low, high in subtracted(span, known):
            market = _id_of(ticker, ids, added, low)
            uid = contents[stretch.gatherer].meta.spool_uid
            note = f"repaired from spool {uid} of gatherer {stretch.gatherer + 1}"
            added.proofs.append(
                Proof(market, coverage.ORDERBOOK, stretch.gatherer, stretch.run_id, low, high, note)
            )
        known.append(span)


async def _trades(
    conn: Connection,
    told: Told,
    contents: dict[int, SpoolContent],
    asked: Asked,
    ids: store.MarketIds,
) -> None:
    """Trades of the spools, then of REST, each once; and what the spools prove of trades."""
    added = told.added
    span = added.from_us, added.to_us
    known = await store.known_trades(conn, *span)
    parts: list[Rows] = []
    for gatherer, content in contents.items():
        rows = _inside(content.trades, span)
        by_rest = (rows["flags"] & TradeFlag.REST) != 0
        sources = np.where(by_rest, SOURCE_REST, 0) | (1 << gatherer)
        for chosen in (~by_rest, by_rest):  # what a frame brought has the frame's values
            made = _as_tape(picked(rows, np.flatnonzero(chosen)), TRADE_ROW)
            made["sources"] = sources[chosen]
            made["market_id"] = [
                _id_of(content.tickers[m], ids, added, us)
                for m, us in zip(
                    made["market_id"].tolist(), made["exchange_us"].tolist(), strict=True
                )
            ]
            parts.append(_new(made, known))
    parts.append(_new(_rest_rows(told, asked, ids, known), known))
    added.trades = joined(parts)
    complete = await _complete_trades(conn, span)
    for gatherer, content in contents.items():
        uid = content.meta.spool_uid
        note = f"repaired from spool {uid} of gatherer {gatherer + 1}"
        for proof in content.trade_proofs:
            clipped = max(proof.from_us, span[0]), min(proof.to_us, span[1])
            for low, high in subtracted(clipped, complete):
                added.proofs.append(
                    Proof(0, coverage.TRADE, gatherer, proof.run_id, low, high, note)
                )
            complete.append(clipped)


async def _complete_trades(conn: Connection, span: Span) -> list[Span]:
    """What runs of the trade channel prove already: the same for every market."""
    evidence = await load_evidence(conn, *span)
    return [
        (max(p.from_us, span[0]), min(p.to_us, span[1]))
        for p in evidence.progress
        if p.channel == coverage.TRADE and p.from_us < p.to_us
    ]


def _inside(rows: Rows, span: Span) -> Rows:
    us = rows["exchange_us"]
    return picked(rows, np.flatnonzero((us >= span[0]) & (us < span[1])))


def _as_tape(rows: Rows, layout: np.dtype[np.void]) -> Rows:
    """Rows of a gatherer in production's layout."""
    made = np.zeros(rows.size, layout)
    for name in set(layout.names or ()) & set(rows.dtype.names or ()):
        made[name] = rows[name]
    if "flags" in (layout.names or ()):
        made["flags"] &= ~int(TradeFlag.REST)
    return made


def _new(rows: Rows, known: set[bytes]) -> Rows:
    """Trades that are not known yet; they are from now on."""
    kept = []
    for n, trade_id in enumerate(rows["trade_id"].tolist()):
        if trade_id not in known:
            known.add(trade_id)
            kept.append(n)
    return picked(rows, np.array(kept, np.int64))


def _rest_rows(told: Told, asked: Asked, ids: store.MarketIds, known: set[bytes]) -> Rows:
    """What REST listed, as trades of the tape."""
    read = rest_trades.read_trades(asked.trades)
    listed = {trade.trade_id for _, trade in read.trades}
    if min(len(listed), len(known)) >= rest_trades.STRANGERS_MIN and not listed & known:
        raise StorageError(
            f"{asked.rest_url} lists {len(listed)} trades; none of them is on the tape",
            hint="is it another exchange's address?",
        )
    if read.refused:
        told.notes.append(f"{read.refused} trades by REST cannot be read: {read.error}")
    made: list[tuple[Any, ...]] = []
    for _, trade in read.trades:
        us, ticker = trade.exchange_us, trade.market
        if us is None or not asked.from_us <= us < asked.to_us:
            continue
        made.append(
            (us, told.added.at_us * 1_000, trade.trade_id, trade.count,
             _id_of(ticker, ids, told.added, us), trade.yes_price, trade.no_price,
             trade.taker_side, int(TradeFlag.BLOCK) if trade.is_block_trade else 0, SOURCE_REST)
        )  # fmt: skip
    return np.array(made, TRADE_ROW)


async def _states(
    conn: Connection, told: Told, contents: dict[int, SpoolContent], ids: store.MarketIds
) -> None:
    """Ticker states that are not on the tape."""
    span = told.added.from_us, told.added.to_us
    known = await store.known_states(conn, *span)
    parts: list[Rows] = []
    for gatherer, content in contents.items():
        made = _as_tape(_inside(content.states, span), TICKER_ROW)
        made["sources"] = 1 << gatherer
        kept = []
        for n, (us, payload, theirs) in enumerate(
            zip(
                *(made[c].tolist() for c in ("exchange_us", "payload_key", "market_id")),
                strict=True,
            )
        ):
            market = _id_of(content.tickers[theirs], ids, told.added, us)
            made["market_id"][n] = market
            key = market, us, payload - (1 << 64) if payload >= 1 << 63 else payload
            if key not in known:
                known.add(key)
                kept.append(n)
        parts.append(picked(made, np.array(kept, np.int64)))
    told.added.states = joined([np.empty(0, TICKER_ROW), *parts])


async def _export(conn: Connection, asked: Asked, told: Told) -> None:
    """New versions of the hours, also those that an earlier repair died before."""
    if not asked.lake:
        return
    exporter = Exporter(open_store(asked.lake), asked.metas)
    await exporter.open(conn)
    names = {m: t for t, m in (await store.market_ids(conn)).items()}
    told.hours = await exporter.new_versions(conn, names)
    told.lake_version = exporter.version


async def ask_rest(asked: Asked, key_id: str, key_file: Path, clock: Clock) -> None:
    """Fill `asked.trades` with what the exchange lists of the time."""
    window = rest_trades.TradeWindow(asked.from_us // US_PER_S, -(-asked.to_us // US_PER_S))
    client = RestClient(
        asked.rest_url, FileSigner(key_id, key_file), rate_per_s=REST_RATE_PER_S,
        wall_ns=clock.wall_ns, monotonic_ns=clock.monotonic_ns,
    )  # fmt: skip
    async with client:
        try:
            cutoff_us = rest_trades.trades_cutoff_us(await client.get("/historical/cutoff"))
        except RestError as error:
            if error.status != NOT_FOUND:
                raise
            cutoff_us = None  # an exchange that keeps everything in one list
        for path in window.paths(cutoff_us):
            async for page in client.pages(path, "trades", window.query()):
                asked.trades += page


def _spools(given: Sequence[str]) -> dict[int, Path]:
    made: dict[int, Path] = {}
    for text in given:
        number, equals, path = text.partition("=")
        if not equals or not number.isdigit() or int(number) < 1:
            raise ConfigError(f"--spool {text} names no gatherer", hint="--spool 3=/var/lib/spool")
        made[int(number) - 1] = Path(path)
    return made


def repair(
    production: Annotated[str, typer.Option(help="connection string of production")],
    start: Annotated[str, typer.Option("--from", help="exchange time, UTC")],
    end: Annotated[str, typer.Option("--to", help="exchange time, UTC; not included")],
    spool: Annotated[
        list[str] | None, typer.Option(help="N=FOLDER: the spool of gatherer N, or a copy of it")
    ] = None,
    rest: Annotated[str, typer.Option(help="the exchange's REST address: ask for trades")] = "",
    key_id: Annotated[str, typer.Option(help="for --rest")] = "",
    key_file: Annotated[Path | None, typer.Option(help="private key, for --rest")] = None,
    lake: Annotated[str, typer.Option(help="s3://bucket/prefix or a directory: export now")] = "",
    meta: Annotated[
        list[str] | None,
        typer.Option(help="the gatherers' second databases, as the deduplicator's"),
    ] = None,
    reason: Annotated[str, typer.Option(help="why; kept with the new versions")] = "repair",
    apply: Annotated[  # noqa: FBT002
        bool, typer.Option("--apply", help="do it; without it nothing is changed")
    ] = False,
) -> None:
    """Bring what was late or lost to a closed time of the tape; dry run unless --apply."""

    def run() -> int:
        asked = Asked(
            production, moment_us(start), moment_us(end), _spools(spool or []), rest_url=rest,
            lake=lake, metas=meta or [], reason=reason, apply=apply,
        )  # fmt: skip
        clock = Clock(0)
        if not asked.spools and not rest:
            raise ConfigError("nothing to repair from", hint="give --spool N=FOLDER or --rest URL")
        if rest:
            if key_file is None:
                raise ConfigError("--rest needs --key-id and --key-file")
            asyncio.run(ask_rest(asked, key_id, key_file, clock))
        told = asyncio.run(run_repair(asked, clock))
        sys.stdout.write(json.dumps(told.facts()) + "\n")
        if told.added.empty:
            sys.stdout.write("nothing to repair\n")
        elif not asked.apply:
            sys.stdout.write("dry run: nothing was changed; --apply does it\n")
        return 0

    raise typer.Exit(guarded(run))
