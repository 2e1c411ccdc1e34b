"""Jobs on Spark give what one process gives, and what the truth says."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from kalshilake import open_lake, spark
from kalshilake.verify import verify
from marketdata.book import hash_levels
from tests import lake_tamper as tamper
from tests.bench.lake import instants
from tests.bench.tape import recorded_tape, write_tape
from tests.lake_world import World, make_world, write_world
from tests.recorded import captures

# Everything here goes by Arrow; pandas only has to be there.
pytestmark = pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas")

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
INSTANTS = 1_000


def moment(us: int) -> datetime:
    return EPOCH + timedelta(microseconds=us)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(11, markets=3, hours=2, events=60)


@pytest.fixture(scope="module")
def root(world: World, tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tmp_path_factory.mktemp("spark") / "lake"
    write_world(made, world)
    return str(made)


def asked(session: Any, pairs: list[tuple[str, int]]) -> Any:
    """Instants as a DataFrame."""
    rows = [(name, moment(us)) for name, us in pairs]
    return session.createDataFrame(rows, "market_ticker string, at timestamp")


def units(levels: Any) -> list[tuple[int, int]]:
    """Levels as (micro-dollars, 1/100 contract)."""
    return [(int(each["price"].scaleb(6)), int(each["size"].scaleb(2))) for each in levels]


def test_books_at_a_thousand_instants_of_the_recorded_captures(
    session: Any, tmp_path: Path
) -> None:
    """Against a replay of the truth; levels and hash."""
    found = captures()
    if not found:
        pytest.skip("the recorded captures are not on this machine")
    tape = recorded_tape(found)
    write_tape(tmp_path / "lake", tape)
    want = {(name, us): h for name, us, h in instants(tape, INSTANTS)}
    frame = spark.books_at(str(tmp_path / "lake"), asked(session, list(want)))
    rows = frame.toArrow().to_pylist()
    assert len(rows) == len(want)
    wrong = 0
    for row in rows:
        us = round((row["at"] - EPOCH) / timedelta(microseconds=1))
        h = want[row["market_ticker"], us]
        wrong += row["book_hash"] != f"{h:016x}"
        wrong += hash_levels(units(row["yes"]), units(row["no"])) != h
        assert row["coverage"] == "complete"
    assert wrong == 0
    # The control: another instant's truth is not found everywhere.
    shifted = np.roll(np.array(list(want.values()), np.uint64), 1)
    assert sum(int(a) != int(b) for a, b in zip(shifted, want.values(), strict=True)) > INSTANTS / 2


def test_tables_books_and_bars_are_those_of_the_lake(session: Any, root: str) -> None:
    lake = open_lake(root)
    for name in ("orderbook_deltas", "orderbook_snapshots", "trades", "tickers", "coverage"):
        found = spark.table(session, root, name).count()
        assert found == sum(o.rows for o in lake.records(name)), name
    for found, want, key in (
        (
            spark.books(session, root, every="5s", on_gap="column"),
            lake.books(every="5s", on_gap="column"),
            ["market_ticker", "at"],
        ),
        (
            spark.bars(session, root, every="1m", on_gap="ignore"),
            lake.bars(every="1m", on_gap="ignore"),
            ["market_ticker", "from_ts"],
        ),
    ):
        made = found.orderBy(*key).toArrow()
        assert made.column_names == want.column_names
        assert made.num_rows == want.num_rows > 10
        assert made.to_pylist() == pa.Table.from_pylist(want.to_pylist(), made.schema).to_pylist()


def test_a_gap_is_refused_by_the_job_and_named(session: Any, root: str, world: World) -> None:
    """A job that left rows out would look whole."""
    with pytest.raises(Exception, match="not complete"):
        spark.books(session, root, every="5s").count()
    late = asked(session, [(world.markets[0].ticker, world.end_us + 10**9)])
    with pytest.raises(Exception, match="not complete"):
        spark.books_at(root, late).count()


def test_another_lake_at_the_same_place_is_refused(session: Any, root: str, tmp_path: Path) -> None:
    """An executor that sees another directory of the same name."""
    place = tmp_path / "lake"
    shutil.copytree(root, place)
    frame = spark.books(session, str(place), every="5s", on_gap="column")
    shutil.rmtree(place)
    write_world(place, make_world(12, markets=3, hours=2, events=60))
    with pytest.raises(Exception, match="another one on this machine"):
        frame.count()


def test_the_verifier_finds_the_same_in_parts(session: Any, root: str, tmp_path: Path) -> None:
    """Nothing on the clean lake, the planted fault on the other, whatever the parts."""
    assert spark.verify(session, root, 3).count() == 0
    for table in ("orderbook_deltas", "coverage", "trades"):
        place = Path(shutil.copytree(root, tmp_path / table))
        key = tamper.keys_of(place, table)[0]
        tamper.flip(place / key, 40)
        want = {(f.key, f.problem) for f in verify(str(place)).findings}
        assert want
        rows = spark.verify(session, str(place), 3).toArrow().to_pylist()
        assert {(r["key"], r["problem"]) for r in rows} == want
