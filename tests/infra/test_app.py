"""The entry point as the CDK command line runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

CDK = Path(__file__).resolve().parents[2] / "cdk"


def run(out: Path, context: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """app.py with the CLI's two variables and no credentials."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    return subprocess.run(
        [sys.executable, "app.py"],
        cwd=CDK,
        env={
            **kept,
            "CDK_OUTDIR": str(out),
            "CDK_CONTEXT_JSON": json.dumps(context),
            "JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION": "20",
        },
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_admin_network_wider_than_24_bits_is_refused_and_leaves_no_template(
    tmp_path: Path,
) -> None:
    """W3: before anything that could be deployed exists."""
    done = run(tmp_path / "out", {"site": "site.example.toml", "admin_cidr": "203.0.112.0/23"})
    assert done.returncode == 2
    assert "/24 or narrower is needed" in done.stderr
    assert not list(tmp_path.glob("out/*.template.json"))


def test_the_app_writes_what_the_golden_templates_say(tmp_path: Path) -> None:
    """The CLI's way and the tests' way to synthesize must be one."""
    done = run(tmp_path / "out", {"site": "site.example.toml"})
    assert done.returncode == 0, done.stderr
    golden = CDK.parent / "tests" / "infra" / "golden"
    written = {p.name.split(".")[0]: p for p in (tmp_path / "out").glob("*.template.json")}
    assert set(written) == {path.stem for path in golden.glob("*.json")}
    for name, path in written.items():
        kept = json.loads((golden / f"{name}.json").read_text(encoding="utf-8"))
        assert json.loads(path.read_text(encoding="utf-8")) == kept, name
