"""What is said to ssh and nix, with programs of these names that write down what they were told."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from deploy.errors import UnreachableError
from deploy.shell import Ssh

SAY = """#!/bin/sh
printf '%s\\n' "$0" "$@" > "$SAID"
printf 'opts %s\\n' "${NIX_SSHOPTS-}" >> "$SAID"
cat > "$SAID.stdin"
"""


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(stat.S_IRWXU)


@pytest.fixture
def ssh(tmp_path: Path) -> Ssh:
    for name in ("ssh", "nix"):
        program(tmp_path, name, SAY)
    path = f"{tmp_path}:{os.environ['PATH']}"
    return Ssh(
        {"gatherer-1": "203.0.113.7"}, tmp_path / "known", tmp_path / "admin", tmp_path / "deploy",
        tmp_path / "control", environment={"PATH": path, "SAID": str(tmp_path / "said")},
    )  # fmt: skip


async def test_a_script_runs_as_root_and_what_is_secret_is_on_no_command_line(
    ssh: Ssh, tmp_path: Path
) -> None:
    answer = await ssh.run("gatherer-1", "echo 'a b'; cat", stdin=b"correct horse")
    assert (answer.code, answer.out, answer.err) == (0, "", "")
    said = (tmp_path / "said").read_text()
    assert "correct horse" not in said
    assert (tmp_path / "said.stdin").read_bytes() == b"correct horse"
    words = said.splitlines()
    assert words[-2] == "sudo -n /bin/sh -euc 'echo '\"'\"'a b'\"'\"'; cat'"
    assert "admin@203.0.113.7" in words
    for wanted in (
        "StrictHostKeyChecking=yes",
        "BatchMode=yes",
        f"UserKnownHostsFile={tmp_path}/known",
    ):
        assert wanted in words


async def test_closures_go_over_ssh_ng_with_their_signatures_checked(
    ssh: Ssh, tmp_path: Path
) -> None:
    await ssh.copy("gatherer-1", ["/nix/store/a", "/nix/store/b"])
    said = (tmp_path / "said").read_text()
    assert "--to\nssh-ng://deploy@203.0.113.7\n/nix/store/a\n/nix/store/b\n" in said
    assert "ssh://" not in said
    assert "--no-check-sigs" not in said
    assert f"-i {tmp_path}/deploy" in said
    assert f"-i {tmp_path}/admin" not in said


async def test_a_broken_line_and_a_silent_host_are_unreachable_and_a_no_is_an_answer(
    ssh: Ssh, tmp_path: Path
) -> None:
    program(tmp_path, "ssh", "#!/bin/sh\necho no route >&2; exit 255\n")
    with pytest.raises(UnreachableError, match="gatherer-1: no route"):
        await ssh.run("gatherer-1", "true")
    program(tmp_path, "ssh", "#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(UnreachableError, match="no answer within 0 s"):
        await ssh.run("gatherer-1", "true", timeout_s=0.2)
    program(tmp_path, "ssh", "#!/bin/sh\necho no >&2; exit 3\n")
    assert (await ssh.run("gatherer-1", "true")).code == 3
