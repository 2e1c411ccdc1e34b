-- Production: the merged tape, the evidence for its coverage, and the merger's own position.
-- Rules: merged rows are copied straight into their table, never updated and never renumbered; every
-- transaction that writes them also moves merge_state, so a crash between two means nothing happened.
-- Bits and units of the columns: marketdata/rows.py.

-- One row, locked by the single merger through an advisory lock. `state` is the arbiter's own, opaque.
CREATE TABLE merge_state (
    only_row        boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    windows         bigint NOT NULL,             -- closed and published so far
    closed_to_us    bigint NOT NULL,             -- exchange time before which all windows are published
    received_ns_max bigint NOT NULL,             -- latest receipt among the published rows
    settings        jsonb NOT NULL,              -- those that decide the result; a change is refused
    state           bytea NOT NULL
);

-- Where reading of each gatherer goes on after a restart.
CREATE TABLE gatherer_cursor (
    gatherer          integer PRIMARY KEY,       -- the bit in `sources`
    system_identifier bigint NOT NULL,           -- of the cluster that was read; another one is another life
    reread_from_batch integer NOT NULL,          -- first batch with rows of windows not yet published
    seen_batch        integer NOT NULL,          -- last batch known when the last window was closed
    next_xid          numeric(20) NOT NULL DEFAULT 0
);

-- Ids are given in the order of first appearance in the tape, by ticker within one window.
CREATE TABLE market (
    market_id       integer PRIMARY KEY,
    ticker          text NOT NULL UNIQUE
);

-- The arbiter's state of one market: epoch, next market_seq, H, open segments (opaque).
CREATE TABLE market_tail (
    market_id       integer PRIMARY KEY,
    state           bytea NOT NULL
);

CREATE TABLE orderbook_delta (
    exchange_ts timestamptz NOT NULL,
    received_ns bigint NOT NULL,                 -- the smallest of all witnesses
    delta       bigint NOT NULL,
    book_hash   bigint NOT NULL,                 -- bits of an unsigned 64-bit value
    market_id   integer NOT NULL,
    epoch       integer NOT NULL,
    market_seq  integer NOT NULL,
    price       integer NOT NULL,
    side        smallint NOT NULL,
    flags       smallint NOT NULL,
    sources     smallint NOT NULL,
    PRIMARY KEY (market_id, epoch, market_seq, exchange_ts) WITH (fillfactor = 100)
) PARTITION BY RANGE (exchange_ts);
CREATE INDEX orderbook_delta_time ON orderbook_delta
    USING brin (exchange_ts) WITH (pages_per_range = 32, autosummarize = on);
CREATE TABLE orderbook_delta_default PARTITION OF orderbook_delta DEFAULT;

CREATE TABLE orderbook_snapshot (
    exchange_ts timestamptz NOT NULL,
    received_ns bigint NOT NULL,
    book_hash   bigint NOT NULL,
    market_id   integer NOT NULL,
    epoch       integer NOT NULL,
    market_seq  integer NOT NULL,                -- events of the epoch before it
    sources     smallint NOT NULL,
    levels      bytea NOT NULL,                  -- canonical form, docs/formats.md section 2
    PRIMARY KEY (market_id, epoch, market_seq, book_hash, exchange_ts)
) PARTITION BY RANGE (exchange_ts);
CREATE INDEX orderbook_snapshot_time ON orderbook_snapshot USING brin (exchange_ts) WITH (autosummarize = on);
CREATE TABLE orderbook_snapshot_default PARTITION OF orderbook_snapshot DEFAULT;

CREATE TABLE trade (
    exchange_ts timestamptz NOT NULL,
    received_ns bigint NOT NULL,
    trade_id    uuid NOT NULL,
    count       bigint NOT NULL,
    market_id   integer NOT NULL,
    yes_price   integer NOT NULL,
    no_price    integer NOT NULL,
    taker_side  smallint NOT NULL,
    flags       smallint NOT NULL,
    sources     smallint NOT NULL,
    PRIMARY KEY (trade_id, exchange_ts)
) PARTITION BY RANGE (exchange_ts);
CREATE INDEX trade_time ON trade USING brin (exchange_ts) WITH (autosummarize = on);
CREATE TABLE trade_default PARTITION OF trade DEFAULT;

CREATE TABLE ticker (
    exchange_ts timestamptz NOT NULL,
    received_ns bigint NOT NULL,
    payload_key bigint NOT NULL,
    volume      bigint NOT NULL,
    open_interest bigint NOT NULL,
    dollar_volume bigint NOT NULL,
    dollar_open_interest bigint NOT NULL,
    yes_bid_size bigint NOT NULL,
    yes_ask_size bigint NOT NULL,
    last_trade_size bigint NOT NULL,
    market_id   integer NOT NULL,
    price       integer NOT NULL,
    yes_bid     integer NOT NULL,
    yes_ask     integer NOT NULL,
    sources     smallint NOT NULL,
    PRIMARY KEY (market_id, exchange_ts, payload_key)
) PARTITION BY RANGE (exchange_ts);
CREATE INDEX ticker_time ON ticker USING brin (exchange_ts) WITH (autosummarize = on);
CREATE TABLE ticker_default PARTITION OF ticker DEFAULT;
