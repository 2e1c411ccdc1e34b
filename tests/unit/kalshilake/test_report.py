"""What the verifier says."""

from __future__ import annotations

import json

from kalshilake.verify.report import Finding, Report, as_json, describe


def test_a_fault_is_told_once_and_decides_the_verdict() -> None:
    """A row group of faults must not be a screen of one line."""
    report = Report("lake", notes=["a fact"])
    assert report.ok
    report.found("k", "p")
    report.found("k", "p")
    assert report.findings == [Finding("k", "p")]
    assert not report.ok
    lines = list(describe(report))
    assert "FOUND      k: p" in lines
    assert "note       a fact" in lines
    assert lines[-1] == "verdict    1 found"
    said = json.loads(as_json(report))
    assert said["findings"] == [{"object": "k", "problem": "p"}]
    assert (said["ok"], said["notes"], said["location"]) == (False, ["a fact"], "lake")
