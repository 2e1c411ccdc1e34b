"""One side: a recording by the gatherer's own parts, and the rows that a spool gives.

`{"op": "record", ...}` takes the fields of tests.bench.recorder.Recording and answers as it does:
feed, spool, intake and sink as the gatherer wires them, on uvloop. With no streams it records
nothing and commits what the spool holds. `{"op": "rows", "spool": DIRECTORY}` decodes and packs a
spool and answers hashes; `"change": true` changes one digit of one frame on the way, which no
checksum can notice (the negative control).
"""

from __future__ import annotations

import hashlib
import re
import sys
import types
from pathlib import Path
from typing import Any

import orjson
import uvloop
from cryptography.hazmat.primitives.asymmetric import rsa

from gatherer.auth import Signer
from gatherer.intake import RecordStream, RowBatch, begin
from gatherer.packing import pack
from marketdata import segment
from runtime import logs
from runtime.spool import START, SpoolReader, SpoolRecord
from runtime.spool_files import read_meta
from tests.aarch64.answering import answer_all

DONE_WITHIN_S = 900  # emulated, on a busy machine
DIGIT = re.compile(rb'("delta_fp":"-?)(\d)')
FIRST_NS = 1


def recorder() -> Any:
    """tests.bench.recorder, which a closure lacks one module for that is not used here."""
    # It reads the database server's processor time; the server is not in sight of the emulator.
    sys.modules.setdefault("psutil", types.ModuleType("psutil"))
    from tests.bench import recorder as module

    module.DONE_WITHIN_S = DONE_WITHIN_S
    return module


def record(asked: dict[str, Any]) -> dict[str, Any]:
    """One recording."""
    module = recorder()
    signer = Signer("aarch64", rsa.generate_private_key(public_exponent=65537, key_size=2048))

    async def run() -> dict[str, Any]:
        made = module.Recorder(module.Recording(**asked, server_pid=0), signer)
        return dict(await made.run())

    return uvloop.run(run())


def changed(record: SpoolRecord) -> SpoolRecord:
    """The record with another digit in the size of its first change."""
    body = bytes(record.payload)
    found = DIGIT.search(body)
    if found is None:
        return record
    digit = b"%d" % ((int(found[2]) + 1) % 10)
    return record._replace(
        payload=memoryview(body[: found.start(2)] + digit + body[found.end(2) :])
    )


def sha256(body: bytes | bytearray | memoryview) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(body).hexdigest()


def rows(spool: Path, *, change: bool) -> dict[str, Any]:
    """What the frames of a spool become: rows as structs, rows as COPY bytes, the final state."""
    meta = read_meta(spool)
    assert meta is not None, spool
    reader = SpoolReader(spool, START)
    stream = RecordStream(reader)
    decoding = begin(stream, meta.id_base)
    waiting = change
    records = 0
    while stream.fill():
        while stream.n_ready:
            one = stream.pop()
            records += 1
            if waiting and one.kind == segment.KIND_FRAMES:
                spoiled = changed(one)
                waiting, one = spoiled is one, spoiled
            decoding.apply(one)
    reader.close()
    assert not waiting, "no digit was changed"
    continuity = decoding.continuity
    made = continuity.take()
    last_ns = continuity.last_received_ns
    packed = pack(RowBatch(made, START, reader.position, FIRST_NS, last_ns), 1, meta.spool_uid)
    structs = {"delta": made.deltas, "trade": made.trades, "ticker": made.tickers}
    return {
        "records": records,
        "frames": decoding.frames,
        "end": list(reader.position),
        "damage": reader.damage,
        "counts": packed.counts,
        "structs": {name: sha256(bytes(body)) for name, body in structs.items()},
        "copy": {layout.table: sha256(body) for layout, body in packed.tables},
        "copy_bytes": sum(len(body) for _, body in packed.tables),
        "state": sha256(orjson.dumps(continuity.export(), option=orjson.OPT_SORT_KEYS)),
    }


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """One question."""
    op = asked.pop("op")
    if op == "record":
        return record(asked)
    return rows(Path(asked["spool"]), change=asked.get("change", False))


if __name__ == "__main__":
    logs.setup("aarch64", "error")
    answer_all(answer)
