"""Settings and effects: values that nobody can change behind the session's back."""

from __future__ import annotations

import dataclasses

import pytest

from marketdata import effects


def test_effects_and_settings_are_frozen() -> None:
    """A shell that changed an effect would do something nobody decided."""
    for value in (
        effects.SessionSettings(),
        effects.SendCommand(b"{}", 1, "list"),
        effects.Reconnect("stall"),
        effects.Report(effects.ReportKind.GAP),
    ):
        field = dataclasses.fields(value)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field, None)


def test_limits_stay_below_those_of_the_exchange() -> None:
    """10,000 commands a second is the documented limit; a default above it would be refused."""
    settings = effects.SessionSettings()
    assert settings.commands_per_s < 10_000
    assert settings.tickers_per_snapshot_command <= settings.snapshots_at_once
    assert settings.probe_timeout_ns <= settings.data_timeout_ns
