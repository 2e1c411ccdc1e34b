-- Production: the merged tape, the evidence for its coverage, and the merger's own position.
-- Rules: merged rows are copied straight into their table, never updated and never renumbered; every
-- transaction that writes them also moves merge_state, so a crash between two means nothing happened.
-- Bits and units of the columns: marketdata/rows.py.

-- Written by the single merger (advisory lock); `windows` fences a second one: an update names the
-- value it found. What the merger needs after a restart is in the three tables after it.
CREATE TABLE merge_state (
    only_row        boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    windows         bigint NOT NULL,             -- closed and published so far
    closed_to_us    bigint NOT NULL,             -- exchange time before which every window is published
    received_ns_max bigint NOT NULL,             -- latest receipt among the published rows
    settings        jsonb NOT NULL,              -- those that decide the result; a change is refused
    counts          jsonb NOT NULL               -- totals since the tape began (dedup.arbitrate.COUNTS)
);

-- Where reading of each gatherer goes on after a restart.
CREATE TABLE gatherer_cursor (
    gatherer          integer PRIMARY KEY,       -- the bit in `sources`
    system_identifier bigint NOT NULL,           -- of the cluster that was read; another one is another life
    reread_from_batch integer NOT NULL,          -- first batch with rows of windows not yet published
    seen_batch        integer NOT NULL           -- last batch known when the last window was closed
);

-- State of the arbiter, opaque: named parts and one part a market.
CREATE TABLE arbiter_state (
    name            text PRIMARY KEY,
    state           bytea NOT NULL
);
CREATE TABLE market_tail (
    market_id       integer PRIMARY KEY,
    state           bytea NOT NULL
);

-- Ids are given in the order of first appearance in the tape, by ticker within one window.
CREATE TABLE market (
    market_id       integer PRIMARY KEY,
    ticker          text NOT NULL UNIQUE,
    first_us        bigint NOT NULL              -- exchange time, start of the window it appeared in
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

-- Epochs and the gaps between them: an epoch after the first opens only with a gap row.
CREATE TABLE market_epoch (
    market_id   integer NOT NULL,
    epoch       integer NOT NULL,
    from_us     bigint NOT NULL,
    start_hash  bigint NOT NULL,
    reason      text NOT NULL,                   -- first | gap | book_equal | disputed
    PRIMARY KEY (market_id, epoch)
);
CREATE TABLE gap (
    market_id   integer NOT NULL,
    epoch       integer NOT NULL,                -- the one that opens after it
    from_us     bigint NOT NULL,
    to_us       bigint NOT NULL,
    hash_before bigint NOT NULL,
    hash_after  bigint NOT NULL,
    kind        text NOT NULL,                   -- gap | book_equal | disputed
    PRIMARY KEY (market_id, epoch)
);

-- Rows that were kept and not merged. `rows`: marketdata.rows.DELTA_ROW, native byte order, as read.
CREATE TABLE quarantine (
    window_index bigint NOT NULL,
    ord         integer NOT NULL,
    market_id   integer NOT NULL,
    gatherer    integer NOT NULL,
    run_id      integer NOT NULL,
    reason      text NOT NULL,
    from_us     bigint NOT NULL,
    to_us       bigint NOT NULL,
    n_rows      integer NOT NULL,
    rows        bytea NOT NULL,
    PRIMARY KEY (window_index, ord)
);

-- Evidence for coverage; keys and meaning: marketdata/coverage.py. A later row replaces an earlier one.
CREATE TABLE run_progress (
    gatherer    integer NOT NULL,
    run_id      integer NOT NULL,
    channel     text NOT NULL,
    from_us     bigint NOT NULL,
    to_us       bigint NOT NULL,
    ended       boolean NOT NULL,
    reason      text NOT NULL,
    PRIMARY KEY (gatherer, run_id)
);
CREATE TABLE market_claim (
    market_id   integer NOT NULL,
    gatherer    integer NOT NULL,
    run_id      integer NOT NULL,
    from_us     bigint NOT NULL,
    to_us       bigint NOT NULL,
    valid       boolean NOT NULL,
    reason      text NOT NULL,
    PRIMARY KEY (market_id, gatherer, run_id, from_us)
);
CREATE INDEX market_claim_time ON market_claim (to_us, from_us);
CREATE TABLE mark (
    window_index bigint NOT NULL,
    ord         integer NOT NULL,
    market_id   integer NOT NULL,
    kind        text NOT NULL,
    from_us     bigint NOT NULL,
    to_us       bigint NOT NULL,
    reason      text NOT NULL,
    PRIMARY KEY (window_index, ord)
);
CREATE INDEX mark_time ON mark (to_us, from_us);
CREATE TABLE audit_point (
    window_index bigint NOT NULL,
    ord         integer NOT NULL,
    market_id   integer NOT NULL,
    gatherer    integer NOT NULL,
    exchange_us bigint NOT NULL,
    agrees      boolean NOT NULL,
    PRIMARY KEY (window_index, ord)
);
CREATE INDEX audit_point_time ON audit_point (exchange_us);

-- The lake's hours: what changed since the last export, and the objects that were written.
CREATE TABLE lake_hour (
    hour_us     bigint PRIMARY KEY,
    rows_dirty  boolean NOT NULL,                -- a row table changed
    proof_dirty boolean NOT NULL,                -- evidence changed: the coverage object
    known_ns    bigint NOT NULL DEFAULT 0        -- receipt up to which market metadata count; 0: not exported
);
CREATE TABLE export_object (
    key         text PRIMARY KEY,
    table_name  text NOT NULL,
    hour_us     bigint NOT NULL,
    n_rows      bigint NOT NULL,
    n_bytes     bigint NOT NULL,
    sha256      text NOT NULL
);
CREATE TABLE lake_version (
    only_row    boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version     bigint NOT NULL,
    sha256      text NOT NULL,
    exported_to_us bigint NOT NULL               -- closed_to_us at the last moment of export
);
