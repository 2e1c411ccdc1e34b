"""The real CDK CLI against moto, in a network namespace that has nothing but loopback and a trap.

Steps: synth twice without credentials (byte-identical), bootstrap, deploy everything, deploy again
(no changes), diff (no differences), change guard. The trap is an interface to nowhere that carries
the default route: every packet that anybody wanted to send elsewhere, a name query included, is
counted there. The count must be zero, and a deliberate packet at the end must be counted.

`--method direct` because moto keeps no outputs of change sets, so importing stacks would fail
there. Destroying is not played: moto fails in it ("IP already in use")."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CDK = ROOT / "cdk"
CLI = CDK / "node_modules" / "aws-cdk" / "bin" / "cdk"
ACCOUNT, REGION = "123456789012", "us-east-1"
STACKS = 8
STEP_SECONDS_MAX = 600
_INSIDE = "KALSHI_CLI_RUN_INSIDE"


class StepFailedError(Exception):
    """A step of the run did not end as it must; the message holds its output."""


def base_environment(home: Path) -> dict[str, str]:
    """Nothing of the caller's AWS settings; caches under `home`."""
    kept = {key: os.environ[key] for key in ("PATH", "LANG", "TMPDIR") if key in os.environ}
    return {
        **kept,
        "HOME": str(home),
        "CDK_HOME": str(home / "cdk"),
        "CDK_DISABLE_CLI_TELEMETRY": "true",
        "AWS_EC2_METADATA_DISABLED": "true",
        "JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION": "20",
        "JSII_RUNTIME_PACKAGE_CACHE_ROOT": str(home / "jsii"),
        "CI": "true",
    }


def cdk(environment: dict[str, str], *arguments: str) -> str:
    """Runs the CLI in cdk/. Returns both outputs; raises StepFailedError with them."""
    done = subprocess.run(
        ["node", str(CLI), *arguments, "-c", "site=site.example.toml"],
        cwd=CDK,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=STEP_SECONDS_MAX,
        check=False,
    )
    if done.returncode != 0:
        raise StepFailedError(f"cdk {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}")
    return done.stdout


def identical(left: Path, right: Path) -> list[str]:
    """Names of files that differ between two assemblies; the tree's own metadata counts too."""
    names = sorted(path.name for path in left.iterdir() if path.is_file())
    others = sorted(path.name for path in right.iterdir() if path.is_file())
    if names != others:
        return [f"{names} against {others}"]
    _, different, errors = filecmp.cmpfiles(left, right, names, shallow=False)
    return different + errors


def synth_twice(work: Path, environment: dict[str, str]) -> int:
    """Two syntheses without credentials. Returns how many files were compared."""
    outputs = [work / "first", work / "second"]
    for output in outputs:
        cdk(environment, "synth", "--quiet", "--output", str(output))
    if different := identical(*outputs):
        raise StepFailedError(f"two syntheses differ: {different}")
    return len(list(outputs[0].iterdir()))


def deploy_twice(work: Path, environment: dict[str, str]) -> dict[str, dict[str, str]]:
    """Bootstrap, deploy, deploy again, diff. Returns the outputs by stack."""
    outputs = work / "outputs.json"
    deploy = (
        "deploy", "--all", "--method", "direct", "--require-approval", "never",
        "--outputs-file", str(outputs), "--output", str(work / "deployed"),
    )  # fmt: skip
    _step("cdk bootstrap", lambda: cdk(environment, "bootstrap", f"aws://{ACCOUNT}/{REGION}"))
    first = _step("cdk deploy --all", lambda: cdk(environment, *deploy))
    done = first.count("✅")
    if done != STACKS:
        raise StepFailedError(f"{STACKS} stacks wanted, {done} deployed\n{first}")
    again = _step("cdk deploy --all again", lambda: cdk(environment, *deploy))
    if again.count("(no changes)") != STACKS:
        raise StepFailedError(f"the second deploy changed something\n{again}")
    difference = _step(
        "cdk diff",
        lambda: cdk(
            environment, "diff", "--method=template", "--fail", "--output", str(work / "diffed")
        ),
    )
    print("  " + difference.strip().splitlines()[-1])
    _guard(work, environment)
    loaded: dict[str, dict[str, str]] = json.loads(outputs.read_text(encoding="utf-8"))
    return loaded


def _guard(work: Path, environment: dict[str, str]) -> None:
    """The change guard against what is deployed: passes as it is, refuses another image."""
    other = work / "other-image"
    cdk(
        environment,
        "synth",
        "--quiet",
        "--output",
        str(other),
        "-c",
        "ami_id=ami-0fedcba9876543210",
    )
    for assembly, expected in ((work / "deployed", 0), (other, 1)):
        done = subprocess.run(
            [sys.executable, "-m", "kalshi_infra.guard", str(assembly)],
            cwd=CDK,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        first, *more = done.stdout.strip().splitlines()
        print(f"  guard, {assembly.name}: exit {done.returncode}, {' '.join([first, *more[:1]])}")
        if done.returncode != expected:
            raise StepFailedError(f"the guard said {done.returncode}\n{done.stdout}")


def _step(name: str, run: object) -> str:
    started = time.monotonic()
    assert callable(run)
    text = str(run())
    print(f"  {name:<24} done in {time.monotonic() - started:.0f} s", flush=True)
    return text


def packets_out() -> int:
    """Packets that the trap has counted."""
    for line in Path("/proc/self/net/dev").read_text(encoding="ascii").splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "trap0":
            return int(counters.split()[9])  # sent packets
    raise StepFailedError("the trap is gone")


def set_trap() -> None:
    """Loopback up, and a pair of interfaces that ends here with the default route."""
    quiet = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")
    if quiet.exists():
        quiet.write_text("1", encoding="ascii")  # else the interface itself would announce itself
    for command in (
        "link set lo up",
        "link add trap0 type veth peer name trap1",
        "addr add 192.0.2.2/24 dev trap0",
        "link set trap0 up",
        "link set trap1 up",
        "route add default dev trap0",
    ):
        subprocess.run(["ip", *command.split()], check=True)


def trap_works() -> bool:
    """A deliberate packet is counted: the negative control."""
    before = packets_out()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        probe.sendto(b"probe", ("192.0.2.255", 9))
    return packets_out() > before


def inside() -> int:
    """Everything, inside the namespace. Returns the exit code."""
    set_trap()
    start = packets_out()
    work = Path(tempfile.mkdtemp(prefix="kalshi-cli-"))
    try:
        environment = base_environment(work)
        print("without credentials:")
        compared = synth_twice(work, environment)
        print(f"  two syntheses, {compared} files, byte-identical")
        with moto_server(environment) as port:
            credentials = {
                "AWS_ACCESS_KEY_ID": "testing",
                "AWS_SECRET_ACCESS_KEY": "testing",
                "AWS_REGION": REGION,
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                # moto reads a bucket out of an IP address in a template's address; a name it does
                # not.
                "AWS_ENDPOINT_URL_S3_FOR_CLOUDFORMATION": f"http://localhost:{port}",
            }
            print("against moto:")
            outputs = deploy_twice(work, {**environment, **credentials})
        for stack, values in outputs.items():
            shown = {k: v for k, v in values.items() if not k.startswith("Exports")}
            print(f"  {stack:<20} {shown}")
        escaped = packets_out() - start
        print(f"packets to anywhere but loopback: {escaped}; the trap counts: {trap_works()}")
        return 0 if escaped == 0 and trap_works() else 1
    except StepFailedError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(work, ignore_errors=True)


class moto_server:  # noqa: N801 - used as a function
    """A moto server process; gives its port, ends it afterwards."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = {
            **environment,
            "PYTHONPATH": str(ROOT / "tests" / "infra"),
            "MOTO_IAM_LOAD_MANAGED_POLICIES": "true",  # the bootstrap stack attaches one
        }

    def __enter__(self) -> int:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto_launcher"],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main() -> int:
    """Enters the namespace and runs there. Returns the exit code."""
    if not CLI.exists():
        print(f"the CLI is not installed: run make setup-cdk-cli ({CLI})", file=sys.stderr)
        return 2
    if os.environ.get(_INSIDE):
        return inside()
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", sys.executable, __file__],
        env={**os.environ, _INSIDE: "1"},
        check=False,
    )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
