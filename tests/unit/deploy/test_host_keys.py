"""Host keys from the console: what is believed, and what is refused."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from deploy import host_keys
from deploy.errors import PlanError
from deploy.fleet import Fleet, Host
from deploy.host_keys import HostKey, parse, trust


def make(folder: Path, name: str, kind: str = "ed25519") -> tuple[HostKey, str]:
    """A real key, and what ssh-keygen says of it as cloud-init prints it."""
    file = folder / f"{name}-{kind}"
    made = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", f"root@{name}", "-f", str(file)]
    subprocess.run(made, check=True)
    told = subprocess.run(
        ["ssh-keygen", "-lf", f"{file}.pub"], check=True, capture_output=True, text=True
    )
    first, second, _ = Path(f"{file}.pub").read_text().split()
    return HostKey(first, second), told.stdout


def console(*keys: tuple[HostKey, str]) -> str:
    """As cloud-init writes it, in the middle of other lines."""
    prints = "".join(f"ci-info: {told}" for _, told in keys)
    lines = "\n".join(f"{key.kind} {key.body} root@host" for key, _ in keys)
    return (
        "[    1.0] booting\r\n<14>Nov 29 cloud-init: ####\n"
        f"-----BEGIN SSH HOST KEY FINGERPRINTS-----\n{prints}"
        f"-----END SSH HOST KEY FINGERPRINTS-----\n"
        f"-----BEGIN SSH HOST KEY KEYS-----\n{lines}\n-----END SSH HOST KEY KEYS-----\nlogin:"
    )


def test_keys_are_those_of_the_last_boot_that_printed_some(tmp_path: Path) -> None:
    ed, ec = make(tmp_path, "a"), make(tmp_path, "a", "ecdsa")
    assert parse(console(ed, ec), "a") == (ed[0], ec[0])
    assert ed[0].fingerprint in ed[1], "as ssh-keygen says it"
    later = make(tmp_path, "b")
    assert parse(console(ed) + "\nreboot\n" + console(later), "a") == (later[0],)


def test_a_console_without_keys_or_with_others_than_its_fingerprints_is_refused(
    tmp_path: Path,
) -> None:
    with pytest.raises(PlanError, match=r"gatherer-1: the console has no host keys"):
        parse("booting", "gatherer-1")
    one, other = make(tmp_path, "a"), make(tmp_path, "b")
    mixed = console((one[0], other[1]))
    with pytest.raises(PlanError, match="host keys and fingerprints on the console differ"):
        parse(mixed, "a")
    with pytest.raises(PlanError, match="of no known kind"):
        parse(console((HostKey("ssh-dss", one[0].body), one[1])), "a")


def test_a_host_is_known_by_its_name_and_address_and_others_stay(tmp_path: Path) -> None:
    file = tmp_path / "etc/known_hosts"
    (key, _), (more, _) = make(tmp_path, "a"), make(tmp_path, "a", "ecdsa")
    (other, _) = make(tmp_path, "b")
    addresses = {"a": "203.0.113.7"}
    (first,) = trust(file, {"a": [more, key]}, addresses)
    assert (first.outcome, set(first.fingerprints)) == (
        "added", {key.fingerprint, more.fingerprint}
    )  # fmt: skip
    foreign = f"# a comment\nelsewhere {other.kind} {other.body}\n"
    file.write_text(file.read_text() + foreign)
    (again,) = trust(file, {"a": [key, more]}, {"a": "203.0.113.9"})  # it was stopped and started
    assert again.outcome == "known"
    text = file.read_text()
    assert foreign in text
    assert "203.0.113.7" not in text
    for name in ("a", "203.0.113.9"):
        found = subprocess.run(
            ["ssh-keygen", "-F", name, "-f", str(file)], check=True, capture_output=True, text=True
        )
        assert key.body in found.stdout, "ssh itself finds it"
    assert [p.name for p in file.parent.iterdir()] == ["known_hosts"]


def test_a_changed_key_is_refused_until_the_host_is_named_as_replaced(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    old, new = make(tmp_path, "a")[0], make(tmp_path, "b")[0]
    where = {"a": "203.0.113.7", "c": "203.0.113.8"}
    trust(file, {"a": [old]}, where)
    before = file.read_bytes()
    with pytest.raises(PlanError, match="hosts are known with other keys") as caught:
        trust(file, {"a": [new], "c": [new]}, where)
    assert f"a: was SHA256:{old.fingerprint}, the console says SHA256:{new.fingerprint}" in str(
        caught.value
    )
    assert "--replaced HOST" in str(caught.value)
    assert file.read_bytes() == before, "nothing is written, not even of the new host"
    outcome = {
        each.host: each.outcome for each in trust(file, {"a": [new], "c": [new]}, where, ["a"])
    }
    assert outcome == {"a": "replaced", "c": "added"}
    assert old.body not in file.read_text()
    with pytest.raises(PlanError, match="no host is called x"):
        trust(file, {"a": [new]}, where, ["x"])


def test_an_address_that_went_to_another_host_takes_no_key_with_it(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    one, two = make(tmp_path, "a")[0], make(tmp_path, "b")[0]
    trust(file, {"a": [one], "b": [two]}, {"a": "203.0.113.7", "b": "203.0.113.8"})
    trust(file, {"a": [one], "b": [two]}, {"a": "203.0.113.8", "b": "203.0.113.7"})
    assert sorted(file.read_text().split()[::3]) == ["a,203.0.113.8", "b,203.0.113.7"]


def test_consoles_are_asked_of_ec2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with mock_aws():
        client: Any = boto3.client("ec2", region_name="us-east-1")
        ran = client.run_instances(ImageId="ami-12c6146b", MinCount=1, MaxCount=1)
        made = ran["Instances"][0]["InstanceId"]
        fleet = Fleet((Host("a", "gatherer", "10.0.1.10", instance=made),), "", "us-east-1")
        assert isinstance(host_keys.consoles(fleet)["a"], str)
        with pytest.raises(PlanError, match="no instance of b is known"):
            host_keys.consoles(Fleet((Host("b", "gatherer", "10.0.1.10"),), "", "us-east-1"))
        gone = Fleet((Host("a", "gatherer", "", instance="i-0123456789abcdef0"),), "", "us-east-1")
        with pytest.raises(PlanError, match="gave no console"):
            host_keys.consoles(gone)
    text = console(make(tmp_path, "a"))
    assert host_keys._text(base64.b64encode(text.encode()).decode()) == text
    assert host_keys._text(text) == text
