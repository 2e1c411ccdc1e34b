"""Faults of a deploy are the project's own kind, each with a countable name."""

from __future__ import annotations

from deploy.errors import DeployError, HostRefusedError, PlanError, UnreachableError
from marketdata.errors import TapeError


def test_each_fault_has_its_name_and_is_expected() -> None:
    kinds = (DeployError, HostRefusedError, PlanError, UnreachableError)
    assert all(issubclass(kind, TapeError) for kind in kinds)
    assert len({kind.reason for kind in kinds}) == len(kinds)
    assert str(PlanError("x is y", hint="do z")) == "x is y\nhint: do z"
