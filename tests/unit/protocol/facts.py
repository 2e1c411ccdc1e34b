"""What the exchange publishes of its protocol, as tables: fields, JSON types, commands, codes.

Written from the AsyncAPI and OpenAPI documents (3.31, checked against the models of 3.34) and apart
from the code that the tables judge: no name here comes from the project's decoder, encoder or
simulator. A shape is {field: kind}; a kind ending in `?` may be absent, in `~` may be null.

Does not do: judge (shapes).
"""

from __future__ import annotations

from typing import Final, TypeAlias

Shape: TypeAlias = dict[str, str]

# -- WebSocket: what stands beside `type` and `msg` ------------------------------------------------

SEQUENCED: Final[Shape] = {"sid": "count", "seq": "count"}
UNSEQUENCED: Final[Shape] = {"sid": "count"}
REPLY: Final[Shape] = {"id": "count?"}
SCOPED_REPLY: Final[Shape] = {"id": "count?", "sid": "count", "seq": "count?"}

ENVELOPES: Final[dict[str, Shape]] = {
    "orderbook_snapshot": {**SEQUENCED, "id": "count?"},  # the id of the get_snapshot it answers
    "orderbook_delta": SEQUENCED,
    "trade": SEQUENCED,
    "ticker": UNSEQUENCED,
    "market_lifecycle_v2": SEQUENCED,
    "multivariate_market_lifecycle": SEQUENCED,
    "event_lifecycle": SEQUENCED,
    "event_fee_update": SEQUENCED,
    "subscribed": REPLY,
    "ok": SCOPED_REPLY,
    "ok of list_subscriptions": REPLY,
    "unsubscribed": SCOPED_REPLY,
    "error": {"id": "count?", "sid": "count?", "seq": "count?"},
}

# -- WebSocket: `msg` ------------------------------------------------------------------------------

_MARKET: Final[Shape] = {"market_ticker": "ticker", "market_id": "uuid"}
_CREATED: Final[Shape] = {
    "exchange_index": "int",
    "open_ts": "seconds",
    "close_ts": "seconds",
    "additional_metadata": "metadata",
    "price_level_structure": "text",
    "price_ranges": "ranges",
}

MESSAGES: Final[dict[str, Shape]] = {
    "orderbook_snapshot": {
        **_MARKET,
        "yes_dollars_fp": "levels?",  # absent: the side is empty
        "no_dollars_fp": "levels?",
    },
    "orderbook_delta": {
        **_MARKET,
        "price_dollars": "price",
        "delta_fp": "change",
        "side": "side",
        "ts": "time?",  # a text here, seconds in trade and ticker
        "ts_ms": "millis?",
        "client_order_id": "text?",
        "subaccount": "int?",
    },
    "trade": {
        "trade_id": "uuid",
        "market_ticker": "ticker",
        "yes_price_dollars": "price",
        "no_price_dollars": "price",
        "count_fp": "size",
        "taker_side": "side?",  # deprecated, may vanish
        "taker_outcome_side": "side",
        "taker_book_side": "book_side",
        "is_block_trade": "bool",
        "ts": "seconds?",
        "ts_ms": "millis",
    },
    "ticker": {
        **_MARKET,
        "price_dollars": "price",
        "yes_bid_dollars": "price",
        "yes_ask_dollars": "price",
        "volume_fp": "size",
        "open_interest_fp": "size",
        "dollar_volume": "int",
        "dollar_open_interest": "int",
        "yes_bid_size_fp": "size",
        "yes_ask_size_fp": "size",
        "last_trade_size_fp": "size",
        "ts": "seconds",
        "ts_ms": "millis",
        "time": "time",
    },
    "event_lifecycle": {
        "event_ticker": "ticker",
        "exchange_index": "int",
        "title": "text",
        "subtitle": "text",
        "collateral_return_type": "text",
        "series_ticker": "ticker",
        "strike_date": "seconds?",
        "strike_period": "text?",
    },
    "event_fee_update": {
        "event_ticker": "ticker",
        "fee_type_override": "text~",
        "fee_multiplier_override": "number~",
    },
    "multivariate_market_lifecycle": {
        "market_ticker": "ticker",
        "event_type": "event_type",
        **{name: f"{kind}?" for name, kind in _CREATED.items()},
    },
    "subscribed": {"channel": "channel", "sid": "count"},
    "ok": {"market_tickers": "names?", "market_ids": "list?"},
    "error": {
        "code": "code",
        "msg": "text",
        "market_ticker": "ticker?",
        "market_tickers": "tickers?",
    },
}

LIFECYCLE: Final[dict[str, Shape]] = {  # market_lifecycle_v2, by event_type
    "created": _CREATED,
    "activated": {"is_deactivated": "bool"},
    "deactivated": {"is_deactivated": "bool"},
    "close_date_updated": {"close_ts": "seconds"},
    "determined": {"determination_ts": "seconds", "result": "result", "settlement_value": "price"},
    "settled": {"settled_ts": "seconds"},
    "price_level_structure_updated": {"price_level_structure": "text", "price_ranges": "ranges"},
    "metadata_updated": {
        "strike_type": "text?",
        "floor_strike": "number?",
        "cap_strike": "number?",
        "custom_strike": "object?",
        "yes_sub_title": "text?",
    },
}
METADATA: Final[Shape] = {
    "name": "text",
    "title": "text",
    "yes_sub_title": "text",
    "no_sub_title": "text",
    "rules_primary": "text",
    "rules_secondary": "text",
    "can_close_early": "bool",
    "event_ticker": "ticker",
    "expected_expiration_ts": "seconds",
    "strike_type": "text?",
    "floor_strike": "number?",
    "cap_strike": "number?",
    "custom_strike": "object?",
}

CHANNELS: Final = {
    "orderbook_delta", "ticker", "trade", "market_lifecycle_v2", "multivariate_market_lifecycle",
    "fill", "user_orders", "market_positions", "order_group_updates", "communications",
    "cfbenchmarks_value", "cfbenchmarks_value_5hz", "pyth_value",
}  # fmt: skip
WITHOUT_MARKETS: Final = {"market_lifecycle_v2", "multivariate_market_lifecycle"}

CODES: Final[dict[int, str]] = {
    1: "unable to process message", 2: "params required", 3: "channels required",
    4: "subscription ids required", 5: "unknown command", 7: "unknown subscription id",
    8: "unknown channel name", 9: "authentication required", 10: "channel error",
    11: "invalid parameter", 12: "exactly one subscription id is required",
    13: "unsupported action", 14: "market ticker required", 15: "action required",
    18: "command timeout", 19: "", 20: "", 21: "", 22: "",  # shard parameters
    23: "match ids required", 24: "index ids required", 25: "subscription buffer overflow",
    26: "subscription market limit exceeded", 27: "too many requests",
    28: "underlying tickers required", 29: "invalid update interval",
}  # fmt: skip
RETIRED_CODES: Final = {6: "already subscribed", 16: "market not found", 17: "internal error"}
TERMINAL_CODES: Final = {10, 25}  # the subscription is dead, the connection is not

# -- WebSocket: commands ---------------------------------------------------------------------------

COMMANDS: Final[dict[str, Shape]] = {
    "subscribe": {
        "channels": "channels",
        "market_ticker": "ticker?",
        "market_tickers": "tickers?",
        "market_id": "uuid?",
        "market_ids": "list?",
        "send_initial_snapshot": "bool?",
        "skip_ticker_ack": "bool?",
        "use_yes_price": "bool?",
    },
    "unsubscribe": {"sids": "sids"},
    "update_subscription": {
        "sid": "count?",
        "sids": "sids?",
        "action": "action",
        "market_ticker": "ticker?",
        "market_tickers": "tickers?",
        "market_id": "uuid?",
        "market_ids": "list?",
        "send_initial_snapshot": "bool?",
    },
    "list_subscriptions": {},
}
ACTIONS: Final = {"add_markets", "delete_markets", "get_snapshot"}

# -- signature -------------------------------------------------------------------------------------

HEADERS: Final = {"KALSHI-ACCESS-KEY", "KALSHI-ACCESS-TIMESTAMP", "KALSHI-ACCESS-SIGNATURE"}
WS_PATH: Final = "/trade-api/ws/v2"
REST_PREFIX: Final = "/trade-api/v2"

# -- REST ------------------------------------------------------------------------------------------

_PRICES: Final = (
    "yes_bid_dollars", "yes_ask_dollars", "no_bid_dollars", "no_ask_dollars", "last_price_dollars",
    "previous_yes_bid_dollars", "previous_yes_ask_dollars", "previous_price_dollars",
    "notional_value_dollars",
)  # fmt: skip
_SIZES: Final = ("yes_bid_size_fp", "yes_ask_size_fp", "volume_fp", "open_interest_fp")

OBJECTS: Final[dict[str, Shape]] = {
    "market": {
        "ticker": "ticker",
        "event_ticker": "ticker",
        "market_type": "market_type",
        "title": "text?",  # deprecated, as subtitle, expiration_time, liquidity, volume_24h
        "subtitle": "text?",
        "yes_sub_title": "text",
        "no_sub_title": "text",
        "created_time": "time",
        "updated_time": "time",
        "open_time": "time",
        "close_time": "time",
        "expected_expiration_time": "time?",
        "expiration_time": "time?",
        "latest_expiration_time": "time",
        "settlement_timer_seconds": "int",
        "settlement_bounds_type": "text?",  # required since 3.34
        "status": "status",
        **dict.fromkeys(_PRICES, "price"),
        **dict.fromkeys(_SIZES, "size"),
        "volume_24h_fp": "size?",
        "liquidity_dollars": "price?",
        "result": "result",
        "settlement_value_dollars": "price?",
        "settlement_ts": "time?",
        "expiration_value": "text",
        "occurrence_datetime": "time?",
        "can_close_early": "bool",
        "early_close_condition": "text?",
        "strike_type": "text?",
        "floor_strike": "number?",
        "cap_strike": "number?",
        "functional_strike": "text?",
        "custom_strike": "object?",
        "rules_primary": "text",
        "rules_secondary": "text",
        "mve_collection_ticker": "text?",
        "mve_selected_legs": "list?",
        "price_level_structure": "text",
        "price_ranges": "ranges",
        "is_provisional": "bool?",
        "exchange_index": "int?",
    },
    "event": {
        "event_ticker": "ticker",
        "series_ticker": "ticker",
        "sub_title": "text",
        "title": "text",
        "collateral_return_type": "text",
        "mutually_exclusive": "bool",
        "category": "text?",
        "strike_date": "time?",
        "strike_period": "text?",
        "markets": "markets?",
        "available_on_brokers": "bool?",
        "product_metadata": "object?",
        "settlement_sources": "list",
        "last_updated_ts": "time?",  # a text despite its name
        "fee_type_override": "text?",
        "fee_multiplier_override": "number?",
        "exchange_index": "int?",
    },
    "series": {
        "ticker": "ticker",
        "frequency": "text",
        "title": "text",
        "category": "text",
        "categories": "list?",  # required since 3.34
        "tags": "list",
        "settlement_sources": "list",
        "contract_url": "text",
        "contract_terms_url": "text",
        "product_metadata": "object?",
        "fee_type": "text",
        "fee_multiplier": "number",
        "additional_prohibitions": "list",
        "volume_fp": "size?",
        "last_updated_ts": "time?",
        "exchange_index": "int?",
    },
    "trade": {
        "trade_id": "uuid",
        "ticker": "ticker",
        "count_fp": "size",
        "yes_price_dollars": "price",
        "no_price_dollars": "price",
        "taker_side": "side?",
        "taker_outcome_side": "side",
        "taker_book_side": "book_side",
        "created_time": "time",
        "is_block_trade": "bool",
    },
    "order book": {"yes_dollars": "levels", "no_dollars": "levels"},
    "status": {
        "exchange_active": "bool",
        "trading_active": "bool",
        "exchange_estimated_resume_time": "time?~",
        "intra_exchange_transfers_active": "bool?",
        "exchange_index_statuses": "shards?",
    },
    "shard": {
        "exchange_index": "int",
        "description": "text",
        "exchange_active": "bool",
        "trading_active": "bool",
        "intra_exchange_transfers_active": "bool",
    },
    "markets page": {"markets": "markets", "cursor": "text"},
    "events page": {"events": "events", "cursor": "text", "milestones": "list?"},
    "trades page": {"trades": "trades", "cursor": "text"},
    "series page": {"series": "series_list"},
    "one market": {"market": "market"},
    "one event": {"event": "event", "markets": "markets"},
    "one series": {"series": "series"},
    "one book": {"orderbook_fp": "order book"},
    "named book": {"ticker": "ticker", "orderbook_fp": "order book"},
    "books": {"orderbooks": "named_books"},
    "error": {"code": "text", "message": "text", "details": "text?"},
    "wrapped error": {"error": "error"},
    "text error": {"error": "text"},
}
STATUSES: Final = {
    "initialized", "active", "inactive", "closed", "determined", "disputed", "amended", "finalized",
}  # fmt: skip
