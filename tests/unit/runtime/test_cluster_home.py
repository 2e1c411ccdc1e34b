"""runtime.cluster_home: accounts, reachable directories, ports, what the killed left behind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from marketdata.errors import StorageError
from runtime import cluster_home
from runtime.cluster_home import blocked_at, free_port, home_for, port_is_free, service_account
from runtime.embedded import EmbeddedPostgres

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs as another account")


def test_chosen_ports_are_never_given_to_outgoing_connections() -> None:
    """Else a client that retries a dead server can connect to itself, and the port is gone."""
    limits = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if not limits.exists():
        pytest.skip("not Linux")
    first = int(limits.read_text().split()[0])
    ports = {free_port() for _ in range(20)}
    assert all(port < first for port in ports)
    assert len(ports) > 10
    assert all(port_is_free(port) for port in ports)


@needs_root
def test_root_gets_a_plain_message_for_a_directory_the_account_cannot_enter(
    tmp_path: Path,
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(StorageError, match=r"cannot enter .*\nhint: chmod o\+x"):
        EmbeddedPostgres(closed / "cluster").start_blocking()
    replaced = home_for(closed)
    try:
        assert replaced != closed
        assert blocked_at(replaced, service_account()) is None
    finally:
        replaced.rmdir()


def test_root_never_runs_the_server_as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    assert service_account().uid != 0
    monkeypatch.setattr(cluster_home, "SERVICE_ACCOUNTS", ("no-such-account", "root"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(StorageError, match="none of no-such-account, root is an account"):
        service_account()


def test_what_a_killed_process_left_is_swept_and_what_is_in_use_is_not() -> None:
    """kill -9 of a test run leaves 30 MB a time; the next one removes it."""
    ours = cluster_home.open_directory("kalshi-tape-db-")
    left = cluster_home.open_directory("kalshi-tape-db-")
    foreign = cluster_home.open_directory("kalshi-tape-db-")
    held = cluster_home.claim(ours)
    try:
        os.close(cluster_home.claim(left))
        (left / "cluster").mkdir()
        assert left in cluster_home.sweep()
        assert not left.exists()
        assert ours.exists()
        assert foreign.exists()  # never claimed: not known to be ours
    finally:
        os.close(held)
        for path in (ours, foreign):
            shutil.rmtree(path)
