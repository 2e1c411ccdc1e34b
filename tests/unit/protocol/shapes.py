"""Judges JSON objects by the tables of `facts`, and makes objects that they allow.

Purpose: `message_faults`, `command_faults` and `object_faults` say in what an object is not as
published; `sample` makes one. A field that nobody knows is a fault: it may be a renamed one. (A
recorder must bear it; what this project sends and simulates must not have it.)

Does not do: reading with the project's own code.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

from tests.unit.protocol.facts import (
    ACTIONS,
    CHANNELS,
    CODES,
    COMMANDS,
    ENVELOPES,
    LIFECYCLE,
    MESSAGES,
    METADATA,
    OBJECTS,
    RETIRED_CODES,
    STATUSES,
    WITHOUT_MARKETS,
    Shape,
)

TICKER: Final = re.compile(r"[!-~]{1,200}")
UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{0,5}[1-9])?Z")
PRICE: Final = re.compile(r"[01]\.\d{2,6}")
SIZE: Final = re.compile(r"\d+\.\d\d")
CHANGE: Final = re.compile(r"-?\d+\.\d\d")

Check = Callable[[Any], bool]


def _text(pattern: re.Pattern[str]) -> Check:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _whole(low: int, high: int) -> Check:
    return lambda value: type(value) is int and low <= value < high


def _one_of(*words: str) -> Check:
    return lambda value: isinstance(value, str) and value in words


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _price(value: Any) -> bool:
    return isinstance(value, str) and bool(PRICE.fullmatch(value)) and Decimal(value) <= 1


def _levels(value: Any) -> bool:
    """Pairs of texts, prices ascending, no size of 0."""
    if not isinstance(value, list) or not all(isinstance(p, list) and len(p) == 2 for p in value):
        return False
    fits = all(_price(p) and _text(SIZE)(q) and Decimal(q) > 0 for p, q in value)
    prices = [Decimal(p) for p, _ in value] if fits else []
    return fits and prices == sorted(set(prices))


def _list_of(check: Check, least: int = 0) -> Check:
    return lambda v: isinstance(v, list) and len(v) >= least and all(check(item) for item in v)


def _object(name: str) -> Check:
    return lambda value: isinstance(value, dict) and not object_faults(name, value)


def _shaped(shape: Shape) -> Check:
    return lambda value: isinstance(value, dict) and not shape_faults(shape, value)


PRICE_RANGE: Final[Shape] = {"start": "price", "end": "price", "step": "price"}
KINDS: Final[dict[str, tuple[Check, Any]]] = {  # kind -> (check, an example)
    "ticker": (_text(TICKER), "KXTEST-26-T1.5"),
    "uuid": (_text(UUID), "961535f3-d80f-5462-e91d-88d4fe6db285"),
    "text": (lambda value: isinstance(value, str), "a text"),
    "bool": (lambda value: isinstance(value, bool), True),
    "int": (_whole(0, 2**53), 12),
    "count": (_whole(1, 2**53), 3),
    "number": (_number, 2.5),
    "seconds": (_whole(10**9, 10**10), 1_786_085_188),
    "millis": (_whole(10**12, 10**13), 1_786_085_188_978),
    "time": (_text(TIME), "2026-08-07T06:46:28.97871Z"),
    "price": (_price, "0.4300"),
    "size": (_text(SIZE), "12.50"),
    "change": (_text(CHANGE), "-12.50"),
    "side": (_one_of("yes", "no"), "no"),
    "book_side": (_one_of("bid", "ask"), "ask"),
    "result": (_one_of("yes", "no", "scalar", ""), "yes"),
    "market_type": (_one_of("binary", "scalar"), "binary"),
    "status": (_one_of(*STATUSES), "active"),
    "channel": (_one_of(*CHANNELS), "orderbook_delta"),
    "action": (_one_of(*ACTIONS), "get_snapshot"),
    "event_type": (_one_of(*LIFECYCLE), "created"),
    "code": (lambda value: type(value) is int and value in CODES, 25),
    "levels": (_levels, [["0.4300", "1.00"], ["0.4400", "20.50"]]),
    "object": (lambda value: isinstance(value, dict), {"any": "thing"}),
    "list": (lambda value: isinstance(value, list), []),
    "tickers": (_list_of(_text(TICKER), 1), ["KXTEST-26-T1.5", "KXTEST-26-T2"]),
    "names": (_list_of(_text(TICKER)), ["KXTEST-26-T1.5", "KXTEST-26-T2"]),  # or none
    "channels": (_list_of(_one_of(*CHANNELS), 1), ["trade"]),
    "sids": (_list_of(_whole(1, 2**31), 1), [1]),
    "ranges": (
        _list_of(_shaped(PRICE_RANGE), 1),
        [{"start": "0.0000", "end": "1.0000", "step": "0.0100"}],
    ),
    "metadata": (_shaped(METADATA), {}),  # its example is made below
    "order book": (_object("order book"), None),
    "market": (_object("market"), None),
    "event": (_object("event"), None),
    "series": (_object("series"), None),
    "error": (_object("error"), None),
    "markets": (_list_of(_object("market")), []),
    "events": (_list_of(_object("event")), []),
    "trades": (_list_of(_object("trade")), []),
    "series_list": (_list_of(_object("series")), []),
    "named_books": (_list_of(_object("named book")), []),
    "shards": (_list_of(_object("shard"), 1), None),
}


def shape_faults(shape: Shape, value: dict[str, Any]) -> list[str]:
    """In what an object's fields are not those of a shape."""
    faults = [f"unknown field {name}" for name in value if name not in shape]
    for name, kind in shape.items():
        plain = kind.rstrip("?~")
        if name not in value:
            if "?" not in kind:
                faults.append(f"{name} is absent")
        elif value[name] is None:
            if "~" not in kind:
                faults.append(f"{name} is null")
        elif not KINDS[plain][0](value[name]):
            faults.append(f"{name} is {value[name]!r:.80}, not a {plain}")
    return faults


def object_faults(name: str, value: Any) -> list[str]:
    """In what a REST object is not as published."""
    if not isinstance(value, dict):
        return [f"{name} is not an object"]
    return [f"{name}: {fault}" for fault in shape_faults(OBJECTS[name], value)]


def message_shape(kind: str, msg: dict[str, Any]) -> Shape:
    """The shape of a message's `msg`."""
    if kind != "market_lifecycle_v2":
        return MESSAGES[kind]
    conditional = LIFECYCLE.get(str(msg.get("event_type")), {})
    return {"market_ticker": "ticker", "event_type": "event_type", **conditional}


def message_faults(frame: dict[str, Any]) -> list[str]:
    """In what a WebSocket message of the exchange is not as published."""
    kind, msg = frame.get("type"), frame.get("msg")
    name = "ok of list_subscriptions" if kind == "ok" and isinstance(msg, list) else kind
    if not isinstance(name, str) or name not in ENVELOPES:
        return [f"unknown type {kind!r}"]
    beside = {key: value for key, value in frame.items() if key not in ("type", "msg")}
    faults = shape_faults(ENVELOPES[name], beside)
    if name == "unsubscribed":
        faults += ["msg is present"] if "msg" in frame else []
    elif name == "ok of list_subscriptions":
        assert isinstance(msg, list)
        faults += [f for entry in msg for f in shape_faults(MESSAGES["subscribed"], entry)]
    elif not isinstance(msg, dict):
        faults.append("msg is no object")
    else:
        faults += shape_faults(message_shape(name, msg), msg)
    return [f"{name}: {fault}" for fault in faults]


def command_faults(command: dict[str, Any]) -> list[str]:
    """In what a command is not one that the exchange documents."""
    name, params = command.get("cmd"), command.get("params")
    if name not in COMMANDS:
        return [f"unknown command {name!r}"]
    faults = [f"unknown field {key}" for key in command if key not in ("id", "cmd", "params")]
    if not KINDS["count"][0](command.get("id")):
        faults.append("id is no positive number")
    if name == "list_subscriptions":
        return faults + (["params are present"] if "params" in command else [])
    if not isinstance(params, dict):
        return [*faults, "params are absent"]
    faults += shape_faults(COMMANDS[name], params)
    rule = {"subscribe": _subscribe_faults, "update_subscription": _update_faults}.get(name)
    if rule is not None:
        named = [key for key in ("market_ticker", "market_tickers") if key in params]
        faults += ["market_ticker and market_tickers"] if len(named) == 2 else []
        faults += rule(params, bool(named))
    return [f"{name}: {fault}" for fault in faults]


def _subscribe_faults(params: dict[str, Any], named: bool) -> list[str]:
    """Which parameters go with which channels."""
    channels = params.get("channels") or []
    faults: list[str] = []
    if "orderbook_delta" in channels and not named:
        faults.append("orderbook_delta without markets")
    if named and WITHOUT_MARKETS & set(channels):
        faults.append("markets on a channel that takes none")
    if "use_yes_price" in params and "orderbook_delta" not in channels:
        faults.append("use_yes_price without orderbook_delta")
    if "send_initial_snapshot" in params and channels != ["ticker"]:
        faults.append("send_initial_snapshot is of ticker only")
    return faults


def _update_faults(params: dict[str, Any], named: bool) -> list[str]:
    faults: list[str] = []
    if ("sid" in params) == ("sids" in params) or len(params.get("sids", [0])) != 1:
        faults.append("not exactly one sid")
    if params.get("action") == "get_snapshot" and "market_tickers" not in params:
        faults.append("get_snapshot takes market_tickers")
    return faults if named else [*faults, "no markets"]


def code_known(code: int) -> bool:
    """Whether a code is or was one of the exchange's."""
    return code in CODES or code in RETIRED_CODES


def sample(shape: Shape) -> dict[str, Any]:
    """An object with every field of a shape."""
    return {name: _example(kind.rstrip("?~")) for name, kind in shape.items()}


def _example(kind: str) -> Any:
    if kind == "metadata":
        return sample(METADATA)
    if kind == "shards":
        return [sample(OBJECTS["shard"])]
    if kind in OBJECTS and KINDS[kind][1] is None:
        return sample(OBJECTS[kind])
    return KINDS[kind][1]


def sample_message(kind: str, event_type: str = "created") -> dict[str, Any]:
    """A frame with every field of a type."""
    frame: dict[str, Any] = {"type": kind.partition(" ")[0], **sample(ENVELOPES[kind])}
    if kind == "ok of list_subscriptions":
        frame["msg"] = [sample(MESSAGES["subscribed"])]
    elif kind != "unsubscribed":
        shape = message_shape(kind, {"event_type": event_type})
        frame["msg"] = sample(shape)
        if "event_type" in shape:
            frame["msg"]["event_type"] = event_type
    return frame
