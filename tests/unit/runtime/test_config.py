"""runtime.config: all faults at once, nothing silently ignored."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from marketdata.errors import ConfigError
from runtime.config import DedupSettings, GathererSettings, load


@pytest.fixture
def gatherer(tmp_path: Path) -> dict[str, str]:
    """The smallest right environment of a gatherer."""
    key = tmp_path / "key.pem"
    key.write_text("a key")
    return {
        "KT_WS_URL": "wss://exchange.test/trade-api/ws/v2",
        "KT_REST_URL": "https://exchange.test/trade-api/v2",
        "KT_KEY_ID": "key-1",
        "KT_PRIVATE_KEY_FILE": str(key),
        "KT_SPOOL_DIR": str(tmp_path / "spool"),
        "KT_TIMESCALE_DSN": "postgresql://tape@127.0.0.1:5432/postgres",
        "KT_POSTGRES_DSN": "postgresql://tape@127.0.0.1:5433/postgres",
    }


DEDUP = {
    "KT_GATHERER_DSNS": '["postgresql://a@h1/x", "postgresql://a@h2/x"]',
    "KT_PRODUCTION_DSN": "postgresql://a@h/x",
    "KT_LAKE_URI": "s3://bucket/prefix",
}


def test_gatherer_with_only_the_required_settings_gets_the_documented_defaults(
    gatherer: dict[str, str],
) -> None:
    settings = load(GathererSettings, gatherer)
    assert (settings.gatherer_name, settings.transport) == ("g1", "websockets")
    assert (settings.reconnect_base_ms, settings.reconnect_cap_ms) == (250, 30_000)
    assert (settings.sink_flush_ms, settings.sink_flush_rows) == (250, 5_000)
    assert (settings.health_port, settings.metrics_port) == (8080, 9090)
    assert settings.spool_dir == Path(gatherer["KT_SPOOL_DIR"])


def test_every_fault_is_in_the_one_message(gatherer: dict[str, str]) -> None:
    """Whoever sets up a host should not have to start the service once for every mistake."""
    del gatherer["KT_KEY_ID"]
    gatherer |= {
        "KT_WS_URL": "http://exchange.test",
        "KT_HEALTH_PORT": "70000",
        "KT_PRIVATE_KEY_FILE": "/nowhere/key.pem",
        "KT_TRANSPORT": "carrier pigeon",
        "KT_RECONECT_CAP_MS": "5",
    }
    with pytest.raises(ConfigError) as caught:
        load(GathererSettings, gatherer)
    message = str(caught.value)
    assert message.startswith("6 settings are wrong:")
    for name in ("KEY_ID", "WS_URL", "HEALTH_PORT", "PRIVATE_KEY_FILE", "TRANSPORT"):
        assert f"KT_{name}: " in message
    assert "KT_RECONECT_CAP_MS: no service has a setting of this name" in message


def test_unreadable_key_file_is_told_apart_from_a_missing_one(gatherer: dict[str, str]) -> None:
    gatherer["KT_PRIVATE_KEY_FILE"] = str(Path(gatherer["KT_PRIVATE_KEY_FILE"]).parent)
    with pytest.raises(ConfigError, match="is not a file"):
        load(GathererSettings, gatherer)


def test_lists_are_json_and_their_faults_stand_with_the_others() -> None:
    with pytest.raises(ConfigError) as caught:
        load(DedupSettings, {"KT_GATHERER_DSNS": "postgresql://a,postgresql://b"})
    message = str(caught.value)
    assert "KT_GATHERER_DSNS: is not a JSON list" in message
    assert message.count("KT_GATHERER_DSNS") == 1
    assert "KT_PRODUCTION_DSN: is not set" in message
    with pytest.raises(ConfigError, match=r"KT_GATHERER_DSNS\.1: must begin with postgresql"):
        load(DedupSettings, DEDUP | {"KT_GATHERER_DSNS": '["postgresql://a", "mysql://b"]'})


def test_an_empty_variable_counts_as_not_set() -> None:
    """Environment files of systemd leave empty variables behind."""
    assert load(DedupSettings, DEDUP | {"KT_WINDOW_MS": ""}).window_ms == 5_000
    with pytest.raises(ConfigError, match="1 setting is wrong:\n  KT_LAKE_URI: is not set"):
        load(DedupSettings, DEDUP | {"KT_LAKE_URI": ""})


def test_settings_of_the_other_service_are_no_fault() -> None:
    """Both services may be started from one environment."""
    assert load(DedupSettings, DEDUP | {"KT_SPOOL_DIR": "/x", "KT_FINAL": "true"}).final


def test_no_password_reaches_a_log_or_a_message() -> None:
    settings = load(DedupSettings, DEDUP | {"KT_PRODUCTION_DSN": "postgresql://u:hunter2@h/x"})
    assert "hunter2" not in str(settings.described())
    assert settings.described()["production_dsn"] == "postgresql://u:***@h/x"
    with pytest.raises(ConfigError) as caught:
        load(DedupSettings, DEDUP | {"KT_PRODUCTION_DSN": "u:hunter2@h/x"})
    assert "hunter2" not in str(caught.value)


def test_settings_cannot_be_changed_after_the_start() -> None:
    settings = load(DedupSettings, DEDUP)
    with pytest.raises(ValidationError):
        settings.window_ms = 1


def test_without_a_mapping_the_process_environment_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in DEDUP.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KT_POLL_MS", "7")
    assert load(DedupSettings).poll_ms == 7
