"""State must come back from its bytes as it was, and equal states must have equal bytes."""

from __future__ import annotations

import msgspec

from dedup.runs import Keyframe, Market, Pair, Run, RunMarkets, Standing, Tail


def full_market() -> Market:
    pair = Pair(
        1, 7, 65538, int(Standing.PENDING), 2**64 - 1, 5,
        keyframe=Keyframe(1, 2, 2**63 + 5, b"\x01\x02"), claim_from_us=9,
    )  # fmt: skip
    return Market(
        "A", 3, 12, 2**64 - 3, pairs=[pair], former=[(0, 1, 2, 3)],
        tail=Tail([1], [2], [3], [4], [5], [6], [2**64 - 1], [8], [3]),
    )  # fmt: skip


def test_a_market_survives_its_bytes() -> None:
    """Hashes use all 64 bits: a signed encoding would break here."""
    packed = msgspec.msgpack.encode(full_market())
    assert msgspec.msgpack.decode(packed, type=Market) == full_market()
    assert msgspec.msgpack.encode(msgspec.msgpack.decode(packed, type=Market)) == packed


def test_a_run_and_its_markets_survive_their_bytes() -> None:
    run = Run(0, 1, 2, "orderbook", fresh=False, first_seq=9, last_received_ns=3, started_ns=4)
    kept = RunMarkets(["A"], [("B", 4)], ["C"])
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(run), type=Run) == run
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(kept), type=RunMarkets) == kept


def test_markets_do_not_share_their_lists() -> None:
    first, second = Market("A"), Market("B")
    first.pairs.append(full_market().pairs[0])
    assert second.pairs == []
