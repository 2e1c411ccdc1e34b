"""What former releases wrote stays readable, with the answers that they gave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kalshilake import objects, open_lake, schema
from kalshilake.verify import verify
from marketdata.errors import LakeError
from tests.old_lakes import LAKES, answers

KEPT = sorted(path for path in LAKES.iterdir() if path.is_dir())


def test_a_lake_of_each_schema_is_kept() -> None:
    """Whoever raises the number keeps a lake of the former one; none is missing."""
    assert {f"schema-{n}" for n in range(1, schema.SCHEMA_VERSION + 1)} <= {p.name for p in KEPT}


@pytest.mark.parametrize("kept", KEPT, ids=lambda path: path.name)
def test_an_old_lake_gives_the_answers_it_gave(kept: Path) -> None:
    """Of each version: hours for themselves, one exported again, all joined."""
    told = json.loads((kept / "answers.json").read_text())
    for version, answer in told.items():
        lake = open_lake(kept / "lake", int(version))
        assert json.loads(json.dumps(answers(lake))) == answer
        assert len(answer["books"]) > 50
    assert told["3"]["rows"] != told["4"]["rows"], "the control: another row is another answer"
    report = verify(str(kept / "lake"))
    assert report.findings == []
    assert any(record.hours > 1 for record in open_lake(kept / "lake").objects)


def test_what_a_newer_release_wrote_is_refused_by_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows whose meaning may have changed are no answer."""
    monkeypatch.setattr(objects, "SCHEMA_VERSION", 0)
    lake = open_lake(KEPT[0] / "lake")
    with pytest.raises(LakeError, match=r"trades.*has schema 1, this reader knows 0"):
        lake.trades(on_gap="ignore")
