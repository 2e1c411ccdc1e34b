"""The outputs file of a real `cdk deploy --all` against moto: `-m tests.onhost.cdk_outputs FILE`.

Runs with the interpreter of the CDK's environment, in a network namespace of its own that has
nothing but loopback. The steps are those of tests/infra/cli_run.py, which also checks them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.infra import cli_run

INSIDE = "KALSHI_OUTPUTS_INSIDE"


def inside(target: Path) -> int:
    """Bootstrap and deploy; how many stacks wrote outputs is the file's to say."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    work = Path(tempfile.mkdtemp(prefix="kalshi-outputs-"))
    try:
        environment = cli_run.base_environment(work)
        with cli_run.moto_server(environment) as port:
            environment |= {
                "AWS_ACCESS_KEY_ID": "testing",
                "AWS_SECRET_ACCESS_KEY": "testing",
                "AWS_REGION": cli_run.REGION,
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_ENDPOINT_URL_S3_FOR_CLOUDFORMATION": f"http://localhost:{port}",
            }
            cli_run.cdk(environment, "bootstrap", f"aws://{cli_run.ACCOUNT}/{cli_run.REGION}")
            cli_run.cdk(
                environment, "deploy", "--all", "--method", "direct",
                "--require-approval", "never", "--outputs-file", str(target),
                "--output", str(work / "deployed"),
            )  # fmt: skip
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


def main() -> int:
    """Enters the namespace and runs there; the exit code."""
    if os.environ.get(INSIDE):
        return inside(Path(sys.argv[1]))
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-m", "tests.onhost.cdk_outputs", sys.argv[1]],
        env={**os.environ, INSIDE: "1"},
        check=False,
    )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
