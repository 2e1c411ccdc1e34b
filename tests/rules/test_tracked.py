"""Nothing of a developer's machine, no download address and no secret is in the repository."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.rules.tree import ROOT, text_of, tracked

# Written in pieces, so that this file does not hold what it looks for.
PATTERNS = {
    "a path of one machine": re.compile(
        r"(?<![\w.:/-])/(?:" + "|".join(("wor" + "k/", "ro" + "ot/", "ho" + r"me/\w")) + ")"
    ),
    "a download address": re.compile(
        "|".join(
            re.escape(host)
            for host in (
                "pypi" + ".org",
                "files.python" + "hosted.org",
                "registry.npm" + "js.org",
                "proxy.golang" + ".org",
                "static.crates" + ".io",
                "--extra-" + "index-url",
            )
        )
    ),
    "an access key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|sk-[A-Za-z0-9]{32,})"),
}
# A key in PEM form, with a body: the words alone may stand in code that makes or refuses keys.
PRIVATE_KEY = re.compile(
    "-----BEGIN [A-Z ]*PRIVATE" + r" KEY-----\s+[A-Za-z0-9+/=\s]{200,}-----END"
)


# Here hosts are made and booted: accounts and homes are those hosts' own.
HOSTS = "tests/onhost/"


def breaches(root: Path) -> list[str]:
    found: list[str] = []
    for path in tracked(root):
        name = path.relative_to(root).as_posix()
        text = text_of(path)
        if text is None:
            continue
        if PRIVATE_KEY.search(text):
            found.append(f"{name} holds a private key")
        for what, pattern in PATTERNS.items():
            if what == "a path of one machine" and name.startswith(HOSTS):
                continue
            for match in pattern.finditer(text):
                line = text.count("\n", 0, match.start()) + 1
                found.append(f"{name}:{line} holds {what}: {match.group()[:40]}")
    return found


def lock_breaches(root: Path) -> list[str]:
    """Locks name versions and hashes: where to get the files is each machine's own setting."""
    found: list[str] = []
    for path in tracked(root):
        name = path.relative_to(root).as_posix()
        if path.name == "requirements.lock":
            text = path.read_text(encoding="utf-8")
            if "://" in text or "index-url" in text or "find-links" in text:
                found.append(f"{name} holds an address")
            for block in re.split(r"\n(?=[A-Za-z0-9])", text):
                if "==" in block and "--hash=sha256:" not in block:
                    found.append(f"{name}: {block.split()[0]} has no hash")
        elif path.name in ("package-lock.json", "npm-shrinkwrap.json"):
            text = path.read_text(encoding="utf-8")
            if '"resolved"' in text:
                found.append(f"{name} holds an address")
            if '"integrity"' not in text:
                found.append(f"{name} has no hash")
        elif path.name in ("uv.lock", "poetry.lock", "Pipfile.lock", "yarn.lock", "pnpm-lock.yaml"):
            found.append(f"{name}: this form of lock records addresses")
    return found


def test_tracked_files_hold_nothing_of_a_machine_and_no_secret() -> None:
    assert breaches(ROOT) == []


def test_locks_hold_hashes_and_no_addresses() -> None:
    assert lock_breaches(ROOT) == []
    assert (ROOT / "requirements.lock").is_file()


@pytest.mark.parametrize(
    "text",
    [
        "see /wo" + "rk/main/x",
        'Path("/ro' + 'ot/.cache")',
        "/ho" + "me/ann/x",
        "https://py" + "pi.org/simple",
        "key = AKI" + "A" + "ABCDEFGHIJKLMNOP",
        "gh" + "p_" + "a" * 36,
        "-----BEGIN RSA PRIVATE" + " KEY-----\n" + "MIIE" * 60 + "\n-----END RSA",
    ],
)
def test_a_planted_leak_is_found(tmp_path: Path, text: str) -> None:
    (tmp_path / "notes.md").write_text(text)
    assert len(breaches(tmp_path)) == 1


def test_files_not_yet_added_are_judged_too_and_ignored_ones_are_not(tmp_path: Path) -> None:
    """A leak must be found before the commit, not after."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text("out/\n")
    (tmp_path / "out").mkdir()
    for name in ("new.md", "out/big.md"):
        (tmp_path / name).write_text("see /wo" + "rk/main")
    assert [breach.split(":")[0] for breach in breaches(tmp_path)] == ["new.md"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("requirements.lock", "a==1 \\\n    --hash=sha256:00\nb==2\n"),
        ("requirements.lock", "--index-url https" + "://example.test\na==1 --hash=sha256:00\n"),
        ("package-lock.json", '{"resolved": "x", "integrity": "y"}'),
        ("package-lock.json", "{}"),
        ("uv.lock", ""),
    ],
)
def test_a_planted_lock_fault_is_found(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert len(lock_breaches(tmp_path)) == 1
