"""Any sequence of exports, re-exports, repairs, compactions and deaths: no row is lost or added, no
pinned reader's answer changes, and whatever is done twice changes nothing."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kalshilake import Lake, compact, joined, open_lake, paths, tables, write
from kalshilake.store import LocalStore
from kalshilake.verify import verify
from marketdata.errors import LakeError, StorageError
from tests.lake_deaths import Dying, tree
from tests.lake_world import START

Rows = dict[str, str]  # market -> title; a market is one row of the table of markets
HOURS = 5
END_US = START + compact.US_PER_DAY  # of what is joined
WATERMARK_US = END_US + 30 * compact.US_PER_DAY


@dataclass(frozen=True)
class Step:
    """An export of some hours at once. `late`: rows that came since; `repaired`: a row that was
    there is another now; `dies`: before which effect, None: it lives."""

    hours: frozenset[int]
    late: int
    repaired: bool
    dies: int | None


@dataclass(frozen=True)
class Compaction:
    """The hours are joined, in parts of so many bytes at most. `dies` as of a Step."""

    most_bytes: int
    dies: int | None


@dataclass
class Model:
    """What ought to be there."""

    hours: dict[int, Rows] = field(default_factory=dict)
    answers: dict[int, Rows] = field(default_factory=dict)  # version -> all its rows
    pinned: list[Lake] = field(default_factory=list)
    serial: int = 0

    def change(self, step: Step) -> dict[int, Rows]:
        """The hours as they are after the step."""
        changed = {}
        for hour in step.hours:
            rows = dict(self.hours.get(hour, {}))
            for _ in range(step.late):
                self.serial += 1
                rows[f"KX-{hour}-{self.serial}"] = "as it came"
            if step.repaired and rows:
                self.serial += 1
                rows[min(rows)] = f"repaired {self.serial}"
            changed[hour] = rows
        return changed


EXPORTS = st.builds(
    Step,
    hours=st.frozensets(st.integers(0, HOURS - 1), min_size=1, max_size=HOURS),
    late=st.integers(0, 3),
    repaired=st.booleans(),
    dies=st.none() | st.integers(0, 14),
)
COMPACTIONS = st.builds(
    Compaction,
    most_bytes=st.sampled_from([1 << 30, 6_000]),  # the day; two or three hours
    dies=st.none() | st.integers(0, 20),
)
STEPS = st.lists(EXPORTS | COMPACTIONS, min_size=1, max_size=7)


def export(store: LocalStore, changed: dict[int, Rows]) -> int:
    """As the deduplicator does it: objects, then one version; the version's number."""
    records = []
    for hour, rows in sorted(changed.items()):
        at = START + hour * paths.US_PER_HOUR
        made = [
            {"market_ticker": name, "first_seen": at + i, "title": title}
            for i, (name, title) in enumerate(sorted(rows.items()))
        ]
        table = tables.records_table("markets", made)
        records.append(write.write_hour(store, "markets", at, table, watermark_us=at))
    return write.commit_version(store, records, watermark_us=WATERMARK_US).version.version


def compacted(store: LocalStore, step: Compaction) -> int:
    """The version's number; nothing is done before there is a lake."""
    if write.load_head(store) is None:
        return 0
    made = compact.compact(store, END_US, most_bytes=step.most_bytes)
    return made.commit.version.version


def read(lake: Lake) -> Rows:
    rows = lake.rows("markets", None, START, START + HOURS * paths.US_PER_HOUR, None)
    names, titles = rows["market_ticker"].to_pylist(), rows["title"].to_pylist()
    assert len(set(names)) == len(names), "a row twice"
    return dict(zip(names, titles, strict=True))


def play(root: Path, model: Model, step: Step | Compaction) -> None:
    """One step, perhaps dying in it and doing it again, and then once more for nothing."""
    changed = model.change(step) if isinstance(step, Step) else {}

    def do(store: LocalStore) -> int:
        return export(store, changed) if isinstance(step, Step) else compacted(store, step)

    if step.dies is not None:
        try:
            do(Dying(root, step.dies))
        except StorageError:
            for version, rows in model.answers.items():  # between death and restart
                assert read(open_lake(root, version)) == rows
    number = do(LocalStore(root))
    model.hours.update(changed)
    if number:
        model.answers[number] = {k: v for rows in model.hours.values() for k, v in rows.items()}
        model.pinned.append(open_lake(root))
    before = tree(root)
    assert do(LocalStore(root)) == number
    assert tree(root) == before, "done twice it changed something"
    if isinstance(step, Compaction) and number:
        assert listed(root) == lying(root), "an engine without the lists finds other objects"


def listed(root: Path) -> set[str]:
    return {o.key for o in open_lake(root).objects}


def lying(root: Path) -> set[str]:
    return {key for key in tree(root) if key.startswith("parquet/") and key.endswith(".parquet")}


@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_whatever_happens_to_a_lake_every_version_keeps_its_rows(
    steps: list[Step | Compaction],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, model = Path(folder) / "lake", Model()
        for step in steps:
            play(root, model, step)
        for lake in model.pinned:
            assert read(lake) == model.answers[lake.version]
        for version, rows in model.answers.items():
            assert read(open_lake(root, version)) == rows
        assert not model.answers or verify(str(root)).findings == []


def test_a_writer_that_keeps_no_former_bytes_would_be_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A negative control: a pinned reader of an hour that was exported again."""
    monkeypatch.setattr(
        LocalStore, "put_if_absent",
        lambda self, key, body, _real=LocalStore.put_if_absent: (
            key.startswith("superseded/") or _real(self, key, body)
        ),
    )  # fmt: skip
    again = Step(frozenset({0}), 2, repaired=True, dies=None)
    with tempfile.TemporaryDirectory() as folder:
        root, model = Path(folder) / "lake", Model()
        for step in (again, again):
            play(root, model, step)
        with pytest.raises(LakeError, match="absent or altered"):
            read(model.pinned[0])
        assert verify(str(root)).findings


def test_a_compaction_that_loses_rows_or_former_bytes_would_be_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A negative control: hours that are taken away without being kept, and a row that is lost."""
    export_all = Step(frozenset(range(HOURS)), 2, repaired=False, dies=None)
    with tempfile.TemporaryDirectory() as folder:
        root, model = Path(folder) / "lake", Model()
        play(root, model, export_all)
        with monkeypatch.context() as patch:
            real = joined.in_market_order
            patch.setattr(joined, "in_market_order", lambda *a: [p.slice(1) for p in real(*a)])
            with pytest.raises(LakeError, match="not those of its hours"):
                play(root, model, Compaction(1 << 30, None))
        play(root, model, Compaction(1 << 30, None))
        for kept in (root / "superseded").iterdir():
            kept.unlink()
        with pytest.raises(LakeError, match="absent or altered"):
            read(model.pinned[0])
        assert verify(str(root)).findings
