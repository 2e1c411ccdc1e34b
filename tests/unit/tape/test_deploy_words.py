"""Every `tape deploy ...` that a document tells people to type is one that the command takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tape import deploy
from tape.main import app
from tests.rules.tree import ROOT

PAGES = ("docs/deploy.md", "docs/aws.md", "docs/runbook.md", "README.md", "docs/onhost.md")
TOLD = re.compile(r"(?:^|`)tape (deploy\b[^`#\n]*)", re.MULTILINE)


def commands(text: str) -> list[str]:
    return [found.strip() for found in TOLD.findall(text)]


def taken(words: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the command line makes of it: nothing is carried out."""

    def nothing(action: object) -> int:
        return 0

    monkeypatch.setattr(deploy, "guarded", nothing)
    done = CliRunner().invoke(app, shlex.split(words))
    return "" if done.exit_code == 0 else done.output


def test_what_is_written_can_be_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        (page, words)
        for page in PAGES
        if (ROOT / page).exists()
        for words in commands((ROOT / page).read_text(encoding="utf-8"))
    }
    assert len(found) >= 8
    for page, words in sorted(found):
        assert taken(words, monkeypatch) == "", f"{page}: tape {words}"


def test_a_word_that_the_command_does_not_know_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = (
        "Say `tape deploy rollout --backwards`, or:\n\n```\ntape deploy trust --host a  # x\n```\n"
    )
    assert commands(page) == ["deploy rollout --backwards", "deploy trust --host a"]
    assert "No such option" in taken("deploy rollout --backwards", monkeypatch)
    assert taken("deploy trust --host a", monkeypatch) == ""
