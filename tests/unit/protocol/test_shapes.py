"""The judge itself: it passes what is published, and finds each way in which that can drift."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.protocol.facts import CODES, COMMANDS, ENVELOPES, LIFECYCLE, OBJECTS, RETIRED_CODES
from tests.unit.protocol.shapes import (
    KINDS,
    command_faults,
    message_faults,
    object_faults,
    sample,
    sample_message,
)

SHARED = Path(__file__).resolve().parents[4] / "shared"
EXAMPLES = Path(os.environ.get("KALSHI_TAPE_MESSAGES") or SHARED / "reference" / "kalshi-messages")
OF_ANOTHER_TYPE: dict[type, Any] = {
    str: 7,
    int: "7",
    bool: "true",
    float: "1.5",
    list: {},
    dict: [],
}
PRIVATE_TYPES = {"fill", "cfbenchmarks_value", "rfq_created"}
REST_FILES = {  # file -> (field that tells the object, its name)
    "rest_market_current": [("market", "one market"), ("markets", "markets page")],
    "rest_event_current": [("events", "events page")],
    "rest_trades_current": [("trades", "trades page")],
    "rest_orderbook_current": [("orderbook_fp", "one book"), ("orderbooks", "books")],
    "rest_exchange_current": [("exchange_active", "status")],
}


def all_messages() -> Iterator[dict[str, Any]]:
    """One full frame of every type and event type."""
    for kind in ENVELOPES:
        for event_type in LIFECYCLE if kind == "market_lifecycle_v2" else ["created"]:
            yield sample_message(kind, event_type)


def drifted(value: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The object with one field renamed, or of another JSON type, at a time."""
    for name, held in value.items():
        renamed = {f"{key}_v2" if key == name else key: v for key, v in value.items()}
        yield f"{name} renamed", renamed
        yield f"{name} of another type", {**value, name: OF_ANOTHER_TYPE[type(held)]}


def examples(*names: str) -> list[tuple[str, Any]]:
    """(file, object) of the example messages; skips the test where they are not."""
    if not EXAMPLES.is_dir():
        pytest.skip("the example messages of the exchange's documents are not on this machine")
    found = []
    for name in names:
        for path in sorted(EXAMPLES.glob(f"{name}.jsonl")):
            found += [(path.stem, json.loads(line)) for line in path.read_text().splitlines()]
    assert found
    return found


def test_what_is_published_passes() -> None:
    for frame in all_messages():
        assert message_faults(frame) == []
    for name in OBJECTS:
        assert object_faults(name, sample(OBJECTS[name])) == []


def test_a_renamed_field_and_a_changed_type_are_found_everywhere() -> None:
    """Negative control over the whole table: every field of every message and object."""
    tried = 0
    for frame in all_messages():
        msg = frame.get("msg")
        cases = [*drifted(frame)] if msg is None else [*drifted({**frame, "msg": msg})]
        if isinstance(msg, dict):
            cases += [(f"msg.{what}", {**frame, "msg": wrong}) for what, wrong in drifted(msg)]
        for what, wrong in cases:
            assert message_faults(wrong) != [], f"{frame['type']}: {what}"
            tried += 1
    for name in OBJECTS:
        for what, wrong in drifted(sample(OBJECTS[name])):
            assert object_faults(name, wrong) != [], f"{name}: {what}"
            tried += 1
    assert tried > 400


def test_an_absent_required_field_is_found_and_an_optional_one_is_not() -> None:
    for name, shape in OBJECTS.items():
        whole = sample(shape)
        for field, kind in shape.items():
            rest = {key: value for key, value in whole.items() if key != field}
            assert bool(object_faults(name, rest)) == ("?" not in kind), f"{name}.{field}"


@pytest.mark.parametrize("code", [0, 6, 16, 17, 30, -1, True, "25"])
def test_an_unknown_code_is_found(code: object) -> None:
    frame = sample_message("error")
    assert message_faults(frame) == []
    frame["msg"]["code"] = code
    assert message_faults(frame) == [f"error: code is {code!r}, not a code"]


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("price", "1.0001"), ("price", "-0.1000"), ("price", "0.4"), ("price", "43"),
        ("size", "5"), ("size", "-5.00"), ("change", "5.0"), ("side", "bid"),
        ("time", "2026-08-07T06:46:28.970Z"), ("time", "2026-08-07 06:46:28Z"),
        ("seconds", 1_786_085_188_978), ("millis", 1_786_085_188), ("count", 0), ("int", True),
        ("levels", [["0.4400", "1.00"], ["0.4300", "1.00"]]), ("levels", [["0.4400", "0.00"]]),
        ("levels", [[0.44, 1]]), ("status", "settled"), ("channel", "ticker_v2"),
    ],
)  # fmt: skip
def test_a_value_that_the_exchange_never_writes_is_found(kind: str, wrong: object) -> None:
    assert KINDS[kind][0](KINDS[kind][1])
    assert not KINDS[kind][0](wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": 1, "cmd": "subscribe_all", "params": {}},
        {"id": 0, "cmd": "list_subscriptions"},
        {"id": 1, "cmd": "list_subscriptions", "params": {}},
        {"id": 1, "cmd": "subscribe", "params": {"channels": []}},
        {"id": 1, "cmd": "subscribe", "params": {"channel": "trade"}},
        {"id": 1, "cmd": "subscribe", "params": {"channels": ["orderbook_delta"]}},
        {"id": 1, "cmd": "subscribe", "params": {"channels": ["trade"], "use_yes_price": False}},
        {"id": 1, "cmd": "unsubscribe", "params": {"sid": 1}},
        {"id": 1, "cmd": "unsubscribe"},
        {
            "id": 1,
            "cmd": "update_subscription",
            "params": {"sid": 1, "sids": [1], "action": "add_markets", "market_tickers": ["T"]},
        },
        {
            "id": 1,
            "cmd": "update_subscription",
            "params": {"sids": [1], "action": "get_snapshot", "market_ticker": "T"},
        },
    ],
)
def test_a_command_that_is_not_documented_is_found(wrong: dict[str, Any]) -> None:
    assert command_faults(wrong) != []


def test_no_code_is_both_current_and_retired() -> None:
    assert not set(CODES) & set(RETIRED_CODES)
    assert set(COMMANDS) == {
        "subscribe", "unsubscribe", "update_subscription", "list_subscriptions",
    }  # fmt: skip


def test_published_messages_pass() -> None:
    """The tables against examples and real traffic, not against our reading of them."""
    seen = set()
    for name, frame in examples("*_current", "orderbook_captured_*"):
        if name.startswith(("rest_", "commands_")) or frame["type"] in PRIVATE_TYPES:
            continue
        seen.add(frame["type"])
        assert message_faults(frame) == [], name
    assert seen == {kind for kind in ENVELOPES if " " not in kind}


def test_published_commands_and_rest_objects_pass() -> None:
    for _, command in examples("commands_current"):
        assert command_faults(command) == []
    judged = 0
    for name, body in examples(*REST_FILES):
        for field, kind in REST_FILES[name]:
            if field in body:
                assert object_faults(kind, body) == []
                judged += 1
    assert judged >= 7
    for _, body in examples("rest_errors"):
        assert any(not object_faults(n, body) for n in ("error", "wrapped error", "text error"))


def test_published_messages_of_the_old_generations_do_not_pass() -> None:
    """Negative control: integer cents are drift, seen from here."""
    for _, frame in examples("orderbook_delta_legacy", "ticker_legacy"):
        whole = copy.deepcopy(frame)
        if "price_dollars" not in whole["msg"] or "price" in whole["msg"]:
            assert message_faults(whole) != []
