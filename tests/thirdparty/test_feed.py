"""pykalshi's order-book, trade and ticker feeds and its own book against the truth."""

from __future__ import annotations

import copy
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

from exchange.truth import Truth, read_truth
from tests.thirdparty.compare import feed_faults
from tests.thirdparty.rig import stage

PLAY = ("--synthetic", "40", "--seconds", "60", "--expect-clients", "1")


def tampered(answer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Answers with one thing wrong each: what the comparison has to find."""
    cases: dict[str, dict[str, Any]] = {}

    def case(name: str) -> dict[str, Any]:
        cases[name] = copy.deepcopy(answer)
        return cases[name]

    del case("a change is missing")["deltas"][5]
    changed = case("two changes changed places")["deltas"]
    changed[7], changed[8] = changed[8], changed[7]
    case("a change is of the other side")["deltas"][9][1] = "neither"
    case("a price is another")["deltas"][3][2] = "0.1234"
    case("a trade has another id")["trades"][0]["trade_id"] = "x"
    case("a trade came twice")["trades"].append(answer["trades"][-1])
    case("a ticker's size is unread")["states"][0]["yes_bid_size_fp"] = None
    case("a message was no model but a dict")["kinds"]["dict"] = 1
    name = next(name for name, book in answer["books"].items() if book["yes"])
    case("a level is missing")["books"][name]["yes"].popitem()
    price, size = next(iter(answer["books"][name]["yes"].items()))
    case("a level is too large")["books"][name]["yes"][price] = str(Decimal(size) + 1)
    del case("a book is missing")["books"][name]
    return cases


async def feed_run(folder: Path) -> tuple[dict[str, Any], str, Truth, dict[str, int]]:
    """One play with the feed as its only client: its answer, its log, the truth, hosts asked."""
    async with stage(folder, *PLAY) as made:
        client = await made.start("feed_pykalshi.py")
        status = await made.done()
        answer, log = await client.answer(f"{status['frames_sent']}\n")
        assert made.proxy.refused == []
        asked = dict(made.proxy.asked)
        assert made.running.stop() == 0
        assert answer["received"] == status["frames_sent"]
        return answer, log, read_truth(made.running.truth), asked


async def test_feeds_and_book_equal_the_truth(tmp_path: Path, say: Callable[[str], None]) -> None:
    """Every message by its own model, in order, and the client's own books at the end.

    Then the same answer with one thing wrong at a time: each must be found.
    """
    answer, log, truth, asked = await feed_run(tmp_path)
    assert set(asked) == {"external-api.kalshi.com", "external-api-ws.kalshi.com"}
    assert answer["reconnects"] == 0
    assert "Failed to validate" not in log, log
    assert feed_faults(answer, truth) == []
    assert len(answer["deltas"]) > 1000
    assert answer["trades"]
    assert answer["states"]
    say(
        f"pykalshi feed: {len(answer['books'])} books, {len(answer['deltas'])} changes, "
        f"{len(answer['trades'])} trades, {len(answer['states'])} ticker states"
    )
    for name, wrong in tampered(answer).items():
        assert feed_faults(wrong, truth) != [], name
