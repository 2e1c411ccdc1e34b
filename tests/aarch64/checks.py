"""All checks in their order, and what none of them can show."""

from __future__ import annotations

from collections.abc import Callable

from tests.aarch64 import checks_capture, checks_lake, checks_merge, checks_service, checks_wheels
from tests.aarch64.trial import Trial

Check = Callable[[Trial], str]

CHECKS: dict[str, Check] = {
    "machine": checks_wheels.machine,
    "machine, control": checks_wheels.machine_control,
    "wheels": checks_wheels.wheels,
    "wheels, control": checks_wheels.wheels_control,
    "imports": checks_wheels.imports,
    "imports, control": checks_wheels.imports_control,
    "capture": checks_capture.capture,
    "capture, frames": checks_capture.frames,
    "capture, rows": checks_capture.rows,
    "capture, database": checks_capture.database,
    "capture, control": checks_capture.capture_control,
    "service": checks_service.service,
    "service, control": checks_service.service_control,
    "merge": checks_merge.merge,
    "merge, control": checks_merge.merge_control,
    "parquet": checks_lake.parquet,
    "parquet, control": checks_lake.parquet_control,
    "s3": checks_lake.s3,
    "s3, control": checks_lake.s3_control,
}
NOT_SHOWN = (
    "speed: emulated times say nothing about a Graviton's",
    "memory ordering: threads run on an x86_64, which orders more than an aarch64 promises",
    "an aarch64 kernel: system calls go to this machine's, with its signals, faults and limits",
    "pages of 64 KiB: the emulator has this machine's 4 KiB",
    "the processor itself: instructions are qemu's reading of the manual, without its errata",
    "the aarch64 closure as Nix builds it: bytecode, autoPatchelf, nixpkgs' Python and C library",
    "PostgreSQL on aarch64: the database here is native",
    "the exchange and S3 themselves: a generator, a simulator and moto stand in, all native",
    "the deduplicator as a process: here run its merge, its lake and its store, and all it imports",
    "a long run, a full host, a real network",
)
