"""`tape deploy` on the command line: plans, refusals, and the phases in their order."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from tape.main import main
from tests.rules.tree import ROOT
from tests.unit.deploy.test_release import manifest
from tests.unit.deploy.test_rollout import FLEET, NAMES

CHECKOUT = ("--checkout", str(ROOT))


def tape(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["deploy", *words])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def release(tmp_path: Path) -> Path:
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps(manifest(topology=FLEET.topology)))
    return file


def test_the_plan_is_printed_as_data_and_no_host_is_needed(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = ("--state", str(tmp_path / "state"))
    assert tape("rollout", "--plan", "--release", str(release), *CHECKOUT, *state) == 0
    steps = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [s["host"] for s in steps if s["do"] == "switch"] == list(NAMES)
    assert all(step["told"] for step in steps)
    assert not (tmp_path / "state").exists()
    one = ("--host", "gatherer-2", "--databases")
    assert tape("rollout", "--plan", "--release", str(release), *one, *CHECKOUT, *state) == 0
    steps = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (switch,) = [s for s in steps if s["do"] == "switch"]
    assert (switch["host"], list(switch["paths"])[-1]) == ("gatherer-2", "postgres")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("elsewhere",), "no phase is called elsewhere"),
        (("rollout", "--resume"), "waits to be gone on with"),
        (("rollout", "--rollback"), "was brought to an end"),
        (("rollout",), "no address of deduplicator"),
        (("rollout", "--plan", "--host", "g9"), "no host is called g9"),
        (("release", "--signing-key", "/nonexistent/key"), "signing key"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(
    words: tuple[str, ...], said: str, release: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    known = ("--private",) if "--resume" in words or "--rollback" in words else ()
    state = ("--state", str(tmp_path / "state"), "--outputs", str(tmp_path / "none.json"))
    assert tape(*words, *known, "--release", str(release), *CHECKOUT, *state) == 2
    assert said in capsys.readouterr().err


def test_a_host_that_is_not_there_is_told_and_nothing_begins(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text("#!/bin/sh\necho 'no route to host' >&2; exit 255\n")
    ssh.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(ssh.parent), prepend=":")
    state = ("--state", str(tmp_path / "state"), "--outputs", str(tmp_path / "none.json"))
    assert tape("rollout", "--private", "--release", str(release), *CHECKOUT, *state) == 2
    assert "deduplicator: no route to host" in capsys.readouterr().err
    assert not (tmp_path / "state" / "journals").exists()


def test_the_phases_come_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a nix and a make that write down what they were told; the rollout finds no hosts."""
    made = tmp_path / "store"
    made.mkdir()
    (made / "manifest.json").write_text(json.dumps(manifest(topology=FLEET.topology)))
    folder = tmp_path / "bin"
    folder.mkdir()
    link = 'while [ $# -gt 0 ]; do [ "$1" != --out-link ] || ln -sfn "$MADE" "$2"; shift; done'
    for name, text in {"nix": link, "make": "", "ssh": "exit 255"}.items():
        said = f'#!/bin/sh\necho "{name} $*" >> "$CALLS"\n{text}\n'
        (folder / name).write_text(said)
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("MADE", str(made))
    (tmp_path / "key").touch()
    state = ("--state", str(tmp_path / "state"), "--outputs", str(tmp_path / "none.json"))
    assert tape("--private", "--signing-key", str(tmp_path / "key"), *CHECKOUT, *state) == 2
    lines = [line.partition(" ")[0] for line in (tmp_path / "calls").read_text().splitlines()]
    calls = [word for word in lines if word in ("nix", "make", "ssh")]
    order = [name for n, name in enumerate(calls) if n == 0 or calls[n - 1] != name]
    assert order == ["nix", "make", "ssh"]
    assert "is built and signed" in capsys.readouterr().out
