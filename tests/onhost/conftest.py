"""What the on-host tests share: root or nothing, the tree, a lab for each module."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nix.host import require
from tests.onhost.image import image
from tests.onhost.lab import Lab
from tests.rules.tree import ROOT

PAGE = ROOT / "docs" / "onhost.md"
TOOLS = {"ip": "iproute2", "losetup": "mount", "mkfs.ext4": "e2fsprogs", "unshare": "util-linux"}


@pytest.fixture(scope="session")
def tree() -> Path:
    """The root tree of the hosts. Fails, never skips: what was not booted was not tested."""
    if os.geteuid() != 0:
        pytest.fail(
            "namespaces, mounts and control groups need root\nhint: run make onhost as root"
        )
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    for program, package in TOOLS.items():
        if shutil.which(program) is None:
            require(program, package)
    return image()


@pytest.fixture(scope="module")
def lab(tree: Path) -> Iterator[Lab]:
    """A run whose every trace is gone afterwards; the test module fails if one is not."""
    with Lab() as made:
        yield made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say after each run what it could not show, in the page's own words."""
    section = PAGE.read_text(encoding="utf-8").partition("## What is not\n")[2]
    terminalreporter.section("not shown by these tests (docs/onhost.md)")
    for item in re.findall(r"(?ms)^- (.*?)(?=^- |\Z)", section):
        terminalreporter.write_line("- " + " ".join(item.replace("**", "").split()))
