"""Checks of the lake: Parquet through kalshilake's own writer and reader, then the same over S3."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import boto3

from nix import wheels
from tests.aarch64.closures import pip_fetch
from tests.aarch64.emulator import native, serving
from tests.aarch64.place import ROOT, cache
from tests.aarch64.trial import FailedError, Trial, expect

FRAMES = 10_000
BUCKET = "kalshi-data-aarch64"
# What moto's server needs beside the tape's own lock; versions and hashes are the CDK's lock's.
FLASK = ("blinker", "click", "flask", "flask-cors", "itsdangerous", "jinja2", "markupsafe")
PROBE = bytes(range(256)) * 4096


def _written(trial: Trial) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same hour on both sides, once: (emulated, native)."""
    if trial.lakes is None:
        lake = trial.folder / "lake"
        (emulated,) = trial.emulator.ask(
            "deduplicator",
            "side_lake",
            [{"op": "write", "lake": trial.inside(lake), "frames": FRAMES}],
        )
        (here,) = native("side_lake", [{"op": "write", "lake": f"{lake}-native", "frames": FRAMES}])
        trial.lakes = (emulated, here)
    return trial.lakes


def parquet(trial: Trial) -> str:
    """Both sides write the same objects, and each reads what the other wrote."""
    emulated, here = _written(trial)
    expect(emulated["rows"] == here["rows"], f"{emulated} and {here}")
    lake = trial.folder / "lake"
    places = [lake, lake.with_name("lake-native")]
    inside = trial.emulator.ask(
        "deduplicator",
        "side_lake",
        [{"op": "read", "lake": trial.inside(place)} for place in places],
    )
    outside = native("side_lake", [{"op": "read", "lake": str(place)} for place in places])
    contents = [answer.get("content", answer) for answer in (*inside, *outside)]
    expect(all(c == contents[0] for c in contents), f"contents differ: {contents}")
    expect(outside[0]["objects"] == emulated["objects"], "objects are not what was certified")
    same = emulated["objects"] == here["objects"] and emulated["sha256"] == here["sha256"]
    expect(same, f"equal rows gave other bytes (L-8): {emulated} and {here}")
    rows = ", ".join(f"{n} {name}" for name, n in sorted(emulated["rows"].items()))
    return (
        f"{rows}: {len(emulated['objects'])} Parquet objects, {emulated['bytes'] / 1024:.0f} KiB;"
        " every value equal, written here or there, read here or there; the objects and the"
        " version are the same bytes on both"
    )


def parquet_control(trial: Trial) -> str:
    """A flipped byte is refused by the emulated reader; one frame less is another content."""
    _written(trial)
    lake = trial.folder / "lake-native"
    path = next(lake.rglob("orderbook_deltas-*.parquet"))
    whole = path.read_bytes()
    body = bytearray(whole)
    body[len(body) // 3] ^= 1
    path.write_bytes(body)
    (torn,) = trial.emulator.ask(
        "deduplicator", "side_lake", [{"op": "read", "lake": trial.inside(lake)}]
    )
    path.write_bytes(whole)
    expect("refused" in torn, "the emulated reader took an object with a flipped byte")
    shorter = trial.folder / "lake-shorter"
    less, _ = native("side_lake", [
        {"op": "write", "lake": str(shorter), "frames": FRAMES - 1},
        {"op": "read", "lake": str(shorter)},
    ])  # fmt: skip
    expect(less["sha256"] != _written(trial)[0]["sha256"], "one frame less is no difference")
    return f"a flipped byte is refused ({torn['refused'][:80]}); one frame less is noticed"


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """moto's S3 on the loopback interface, with one empty bucket; the client's environment."""
    pins = {p.name: p for p in wheels.read_lock((ROOT / "cdk/requirements.lock").read_text())}
    text = wheels.asked([pins[name] for name in FLASK])
    kept = cache() / f"flask-{sha256(text.encode()).hexdigest()[:16]}"
    if not kept.exists():
        arriving = cache() / "flask-new"
        pip_fetch(text, (), "install", arriving)
        for old in cache().glob("flask-*"):
            if old != arriving:
                shutil.rmtree(old)
        arriving.rename(kept)
    with serving(
        *("-m", "tests.aarch64.moto_server"), environment={"PYTHONPATH": str(kept)}
    ) as child:
        assert child.stdout is not None
        port = child.stdout.readline().strip()
        if not port:
            raise FailedError("moto did not start")
        settings = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        client(settings).create_bucket(Bucket=BUCKET)
        yield settings


def client(settings: dict[str, str]) -> Any:
    """A native client of that server."""
    return boto3.client(
        "s3",
        endpoint_url=settings["AWS_ENDPOINT_URL"],
        aws_access_key_id=settings["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=settings["AWS_SECRET_ACCESS_KEY"],
        region_name=settings["AWS_DEFAULT_REGION"],
    )


def s3(trial: Trial) -> str:
    """The emulated side puts a lake into S3 and gets it back; so does this side."""
    written, _ = _written(trial)
    place = f"s3://{BUCKET}/lake"
    with s3_server() as settings:
        questions: list[dict[str, Any]] = [
            {"op": "store", "lake": place},
            {"op": "write", "lake": place, "frames": FRAMES},
            {"op": "read", "lake": place},
        ]
        probe, put, got = trial.emulator.ask("deduplicator", "side_lake", questions, settings)
        (here,) = native("side_lake", questions[2:], settings)
        body = client(settings).get_object(Bucket=BUCKET, Key="lake/probe/a")["Body"].read()
        control = _s3_control(trial, settings, next(iter(written["objects"])))
    wanted = {
        "sha256": sha256(PROBE).hexdigest(),
        "first": True,
        "second": False,
        "kept": "first",
        "range": PROBE[255:258].hex(),
        "middle": PROBE[1000:1024].hex(),
        "sizes": [len(PROBE), None],
        "listed": [["probe/a", len(PROBE)], ["probe/b", len(b"first")]],
    }
    expect(probe == wanted, f"the store answered {probe}, not {wanted}")
    expect(body == PROBE, "S3 holds other bytes than were put")
    expect(put.get("objects") == written["objects"], f"other objects than in a directory: {put}")
    expect(got == here, f"read under emulation and here: {got} and {here}")
    trial.s3_control = control
    return (
        f"put, conditional put (the second refused), get, ranged get, list and open of"
        f" {len(PROBE)} bytes; {len(put['objects'])} objects and a version put and read back under"
        " emulation and here, the same bytes as in a directory"
    )


def _s3_control(trial: Trial, settings: dict[str, str], key: str) -> tuple[str, str]:
    """What the emulated side says of an object that was changed in S3, and of no bucket."""
    s3_client = client(settings)
    body = bytearray(s3_client.get_object(Bucket=BUCKET, Key=f"lake/{key}")["Body"].read())
    body[len(body) // 3] ^= 1
    s3_client.put_object(Bucket=BUCKET, Key=f"lake/{key}", Body=bytes(body))
    changed, absent = trial.emulator.ask(
        "deduplicator",
        "side_lake",
        [{"op": "read", "lake": f"s3://{BUCKET}/lake"}, {"op": "store", "lake": "s3://absent/x"}],
        settings,
    )
    return str(changed.get("refused", "")), str(absent.get("refused", ""))


def s3_control(trial: Trial) -> str:
    """An object changed in S3 is refused by the emulated reader, a bucket that is absent too."""
    if trial.s3_control is None:
        s3(trial)
    assert trial.s3_control is not None
    changed, absent = trial.s3_control
    expect(changed, "the emulated reader took an object that was changed in S3")
    expect("NoSuchBucket" in absent, f"a put into no bucket: {absent!r}")
    return f"a changed object is refused ({changed[:80]}); so is a bucket that is not there"
