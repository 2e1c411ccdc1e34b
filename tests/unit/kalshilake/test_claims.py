"""Coverage, as the verifier sees it. Each edit leaves every list and hash consistent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from kalshilake import encode, schema
from kalshilake.verify import verify
from kalshilake.verify.claims import CHANNELS, STATUSES
from tests import lake_tamper as tamper
from tests.lake_world import START, Epoch, Event, Market, World, write_world

HOUR = 3_600_000_000
A, B, C, D = (START + i * 600_000_000 for i in range(1, 5))


def two_epochs(flags: int = 0) -> World:
    """Epoch 1 claims [A, B), epoch 2 [C, D): a gap between, events in both."""
    one = Epoch(1, A, B, {}, [Event(A + 5, price=10_000, delta=7, flags=flags)], [0])
    two = Epoch(2, C, D, {(0, 10_000): 7}, [Event(C + 5, price=10_000, delta=1)], [0])
    return World(0, 2, [Market("KX-A", [one, two])])


def forge(root: Path, edit, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Change coverage rows, written by a writer that does not look at them."""
    write_world(root, two_epochs())
    key = tamper.keys_of(root, "coverage")[0]
    monkeypatch.setattr(encode, "_check_coverage", lambda rows: None)

    def change(rows: pa.Table) -> pa.Table:
        made = rows.to_pylist()
        book = [r for r in made if r["channel"] == "orderbook"]
        edit(book, made)
        return pa.Table.from_pylist(made, schema=rows.schema)

    tamper.rewrite(root, key, change, 4)
    report = verify(str(root))
    assert all(f.key == key for f in report.findings)
    return [f.problem for f in report.findings]


def test_the_words_are_those_of_the_format() -> None:
    """Written twice, on purpose."""
    assert frozenset(schema.STATUSES) == STATUSES
    assert frozenset(schema.CHANNELS) == CHANNELS


def claim(row: dict[str, Any], epoch: int | None) -> None:
    row.update(status="complete", sources=7, epoch=epoch, reason="")


def _gap_as(epoch: int | None):
    return lambda book, _: claim(book[2], epoch)


CASES = {
    "a gap called complete in the epoch before": (_gap_as(1), "complete from epoch 1 into epoch 2"),
    "a gap called complete in the epoch after": (_gap_as(2), "complete from epoch 1 into epoch 2"),
    "a gap called complete in no epoch": (_gap_as(None), "complete from epoch 1 into epoch None"),
    "a claim in another epoch": (
        lambda book, _: book[1].update(epoch=3), "complete in epoch 3 over an event of epoch 1",
    ),
    "the dark before, called complete in another epoch": (
        lambda book, _: claim(book[0], 9), "complete from epoch 9 into epoch 1",
    ),
    "nobody proves it": (lambda book, _: book[1].update(sources=0), "nobody proves it"),
    "a hole": (lambda book, made: made.remove(book[2]), "overlap or leave a hole"),
    "an overlap": (
        lambda book, _: book[1].update(to_ts=book[3]["from_ts"]), "overlap or leave a hole",
    ),
    "an empty interval": (
        lambda book, _: book[0].update(to_ts=book[0]["from_ts"]), "empty or leaves its hour",
    ),
    "an interval longer than its hour": (
        lambda book, _: book[-1].update(to_ts=book[-1]["to_ts"].replace(minute=1)),
        "empty or leaves its hour",
    ),
    "an unknown status": (lambda book, _: book[0].update(status="fine"), "'fine' is unknown"),
    "complete tickers": (
        lambda _, made: [r.update(status="complete") for r in made if r["channel"] == "ticker"
                         and r["status"] == "unproven"], "tickers cannot be complete",
    ),
    "no coverage of a market with events": (
        lambda book, made: [made.remove(r) for r in book], "has events in this hour and no",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_an_edited_claim_is_found_by_what_it_contradicts(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A false `complete` is the worst bug this project can have, and the worst edit."""
    edit, words = CASES[case]
    found = forge(tmp_path, edit, monkeypatch)
    assert any(words in problem for problem in found), found


@pytest.mark.parametrize("flag", [64, 128])
def test_an_ambiguous_or_disputed_event_inside_a_claim_is_found(tmp_path: Path, flag: int) -> None:
    """Its neighbourhood is never complete."""
    write_world(tmp_path, two_epochs(flags=flag))
    found = verify(str(tmp_path)).findings
    assert [f.problem for f in found] == ["KX-A orderbook: complete over a flagged event"]


def test_a_new_epoch_at_an_hours_border_needs_a_gap_too(tmp_path: Path) -> None:
    """Coverage is written by hours; the joint may lie between two objects."""
    one = Epoch(1, A, START + HOUR, {}, [Event(A + 5, price=10_000, delta=7)], [0])
    two = Epoch(2, START + HOUR, START + HOUR + 5, {(0, 10_000): 7}, [], [0])
    write_world(tmp_path, World(0, 2, [Market("KX-A", [one, two])]))
    found = verify(str(tmp_path)).findings
    assert [f.problem for f in found] == [
        "KX-A orderbook: complete from epoch 1 into epoch 2 without a gap"
    ]


def test_a_claim_past_the_watermark_is_found(tmp_path: Path) -> None:
    """Nothing is final that is not merged yet."""
    write_world(tmp_path, two_epochs())
    for path in sorted((tmp_path / "manifest").glob("*.json")):
        tamper.edit_version(path, lambda b: b.update(watermark_us=D - 1), sealed=True)
    tamper.rechain(tmp_path)
    problems = {f.problem for f in verify(str(tmp_path)).findings}
    assert "KX-A orderbook: an interval is complete past the watermark" in problems
