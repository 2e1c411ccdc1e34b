"""The root of a day: one hash that says whether anything of it changed, and since which version."""

from __future__ import annotations

import hashlib
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from kalshilake.manifest import LakeVersion
from kalshilake.roots import DayRoot, day_roots
from kalshilake.store import LocalStore
from kalshilake.verify import cited_roots, main, verify
from kalshilake.write import commit_version, load_head, load_version, write_hour
from tests import lake_tamper as tamper
from tests.lake_rows import HOUR, delta_rows


def version_of(root: Path) -> LakeVersion:
    head = load_head(LocalStore(root))
    assert head is not None
    return head.version


def only(root: Path) -> DayRoot:
    (found,) = day_roots(version_of(root))
    return found


def other_count(rows: pa.Table) -> pa.Table:
    """Every trade of one contract: nothing in the tape contradicts it."""
    at = rows.schema.get_field_index("count")
    field = rows.schema.field(at)
    ones = pa.array([Decimal(1)] * rows.num_rows, pa.decimal128(3, 2)).cast(field.type)
    return rows.set_column(at, field, ones)


def test_the_root_is_the_hash_that_the_format_document_says(pristine: Path) -> None:
    """Somebody else must be able to compute it from the list alone."""
    listed = json.loads(tamper.newest(pristine).read_bytes())["objects"]
    found = only(pristine)
    lines = "".join(f"{o['key']} {o['sha256']}\n" for o in listed)
    text = f"kalshi-tape-day 1\n{found.day}\n{lines}"
    assert found.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert (found.objects, found.rows) == (len(listed), sum(o["rows"] for o in listed))
    assert found.bytes == sum(o["bytes"] for o in listed)


def test_a_consistent_forgery_that_nothing_contradicts_has_another_root(lake_copy: Path) -> None:
    """The control first: without a root that was kept, the verifier must believe these trades."""
    kept = only(lake_copy)
    tamper.rewrite(lake_copy, tamper.keys_of(lake_copy, "trades")[0], other_count, 4)
    assert verify(str(lake_copy)).findings == []
    (finding,) = verify(str(lake_copy), roots={kept.day: kept.sha256}).findings
    assert kept.sha256 in finding.problem
    assert kept.day in finding.problem
    now = only(lake_copy)
    report = verify(str(lake_copy), roots={now.day: now.sha256.upper()})
    assert report.findings == []
    assert report.notes == [f"{now.day}: has the root that was cited"]


def test_days_stand_for_themselves_and_an_older_root_names_its_version(tmp_path: Path) -> None:
    """What is added later does not touch a day that was cited; what is exported again is told."""
    store = LocalStore(tmp_path)
    day_us = 24 * 3_600_000_000
    watermark = HOUR + 2 * day_us
    one = write_hour(store, "orderbook_deltas", HOUR, delta_rows(30), watermark_us=watermark)
    commit_version(store, [one], watermark_us=HOUR)
    (first,) = day_roots(version_of(tmp_path))
    assert not first.closed
    rows = delta_rows(30, hour_us=HOUR + day_us)
    two = write_hour(store, "orderbook_deltas", HOUR + day_us, rows, watermark_us=watermark)
    commit_version(store, [two], watermark_us=HOUR + day_us)
    found = day_roots(version_of(tmp_path))
    assert found[0].sha256 == first.sha256
    assert [r.closed for r in found] == [True, False]
    again = write_hour(store, "orderbook_deltas", HOUR, delta_rows(31), watermark_us=watermark)
    commit_version(store, [again], watermark_us=watermark)
    assert day_roots(version_of(tmp_path))[0].sha256 != first.sha256
    assert day_roots(load_version(store, 2).version)[0].sha256 == first.sha256
    notes = verify(str(tmp_path), roots={r.day: r.sha256 for r in found}).notes
    assert any("is of version 2" in n and first.day in n for n in notes)
    assert f"{found[1].day}: has the root that was cited" in notes


@pytest.mark.parametrize(
    "text", ["2026-05-13", "2026-5-13:" + "0" * 64, "2026-05-13:xyz", ":" + "0" * 64, ""]
)
def test_what_is_no_root_is_refused(pristine: Path, text: str) -> None:
    """A root that was cut off would otherwise be "of no version", an accusation."""
    with pytest.raises(ValueError, match="DAY:SHA256"):
        cited_roots([text])
    said: list[Any] = []
    assert main([str(pristine), "--root", text], said.append) == 2
    assert "DAY:SHA256" in said[0]


def test_a_day_that_the_lake_never_had_has_no_root(pristine: Path) -> None:
    (finding,) = verify(str(pristine), roots={"1999-01-01": "0" * 64}).findings
    assert "1999-01-01" in finding.problem
