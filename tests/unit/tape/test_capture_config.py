"""Settings of a capture: file, environment, flags, and every fault in one message."""

from __future__ import annotations

from pathlib import Path

import pytest

from marketdata.errors import ConfigError
from tape.capture_config import ADDRESSES, resolve

KEY = {"key_id": "k", "key_file": Path("key.pem")}


def test_later_wins_and_the_printed_form_says_where_each_came_from(tmp_path: Path) -> None:
    file = tmp_path / "capture.toml"
    file.write_text('key_id = "of-file"\nkey_file = "a.pem"\ngatherers = 2\nseries = ["A"]\n')
    environ = {"KT_CAPTURE_GATHERERS": "3", "KT_CAPTURE_SERIES": "B,C", "KT_OTHER": "x"}
    found = resolve(file, environ, {"key_id": "of-flag", "env": "demo", "series": [], "out": None})
    config = found.config
    assert (config.key_id, config.key_file, config.gatherers) == ("of-flag", Path("a.pem"), 3)
    assert config.series == ["B", "C"]
    assert (config.websocket, config.rest) == ADDRESSES["demo"]
    told = dict(line.split(maxsplit=1) for line in found.lines())
    assert told["key_id"] == "of-flag  (--key-id)"
    assert told["gatherers"] == "3  (KT_CAPTURE_GATHERERS)"
    assert told["key_file"] == f"a.pem  ({file})"
    assert told["transport"] == "picows  (default)"
    assert told["series"] == "B, C  (KT_CAPTURE_SERIES)"
    assert told["ws_url"].startswith(ADDRESSES["demo"][0])


def test_a_list_in_the_environment_may_be_json() -> None:
    assert resolve(None, {"KT_CAPTURE_SERIES": '["X","Y"]'}, KEY).config.series == ["X", "Y"]
    with pytest.raises(ConfigError, match="KT_CAPTURE_SERIES: is not a list"):
        resolve(None, {"KT_CAPTURE_SERIES": "[oops"}, KEY)


def test_every_fault_is_in_the_one_message(tmp_path: Path) -> None:
    file = tmp_path / "capture.toml"
    file.write_text("colour = 1\n")
    environ = {"KT_CAPTURE_GATHERER": "1", "KT_CAPTURE_ENV": "test"}
    with pytest.raises(ConfigError) as caught:
        resolve(file, environ, {"gatherers": 9, "key_file": Path("k")})
    told = str(caught.value)
    assert "KT_CAPTURE_GATHERER: there is no such setting" in told
    assert "colour: there is no such setting" in told
    assert "--key-id is not given" in told
    assert "env = 'test' (KT_CAPTURE_ENV)" in told
    assert "gatherers = 9 (--gatherers)" in told
    assert told.count("\n") == 1, "the faults are one line, the hint another"


@pytest.mark.parametrize(("text", "says"), [(None, "cannot be read"), ("a = [", "is not TOML")])
def test_a_file_that_is_none_is_named(tmp_path: Path, text: str | None, says: str) -> None:
    file = tmp_path / "capture.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=says):
        resolve(file, {}, KEY)
