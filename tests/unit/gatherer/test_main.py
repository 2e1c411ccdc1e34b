"""The command: settings that are wrong, and what it says about them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def _run(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KT_")}
    return subprocess.run(
        [sys.executable, "-m", "gatherer.main"],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_all_faults_of_the_settings_are_told_at_once_with_exit_code_2() -> None:
    """Mending one to find the next is how evenings are lost."""
    ended = _run({"KT_WS_URL": "http://wrong", "KT_TRANSPORT": "pigeon", "KT_TYPO": "1"})
    assert ended.returncode == 2
    for name in ("KT_WS_URL", "KT_TRANSPORT", "KT_TYPO", "KT_REST_URL", "KT_SPOOL_DIR"):
        assert name in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_file_that_is_no_key_is_a_setting_that_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("hello")
    ended = _run(
        {
            "KT_WS_URL": "ws://127.0.0.1:1/x",
            "KT_REST_URL": "http://127.0.0.1:1/x",
            "KT_KEY_ID": "id",
            "KT_PRIVATE_KEY_FILE": str(tmp_path / "key.pem"),
            "KT_SPOOL_DIR": str(tmp_path / "spool"),
            "KT_TIMESCALE_DSN": "postgresql://127.0.0.1:1/none",
            "KT_POSTGRES_DSN": "postgresql://127.0.0.1:1/none",
        }
    )
    assert ended.returncode == 2
    assert "not a PEM private key" in ended.stderr
    assert not (tmp_path / "spool").exists()
