-- The gatherer's hot database (port 5432 in the specification): what arrived, as it arrived.
-- Rules: hot tables are NOT NULL and fixed width (read back by np.frombuffer), 8-byte columns first,
-- no btree on orderbook_delta (an index costs more than the row), appended by one writer in order.

CREATE TABLE spool_cursor (
    spool_uid   uuid PRIMARY KEY,
    segment     integer NOT NULL,
    offset_bytes bigint NOT NULL,
    batch_id    integer NOT NULL
);

CREATE TABLE ingest_batch (
    batch_id    integer PRIMARY KEY,             -- assigned by the one writer, ascending
    batch_uid   uuid NOT NULL UNIQUE,            -- made by the client: refuses a repeated commit
    xid         xid8 NOT NULL DEFAULT pg_current_xact_id(),
    n_deltas    integer NOT NULL,
    n_rows      integer NOT NULL,                -- of all tables together
    min_received_ns bigint NOT NULL,
    max_received_ns bigint NOT NULL              -- everything received up to here is committed
);
CREATE INDEX ingest_batch_xid ON ingest_batch (xid);

CREATE TABLE market (
    market_id   integer PRIMARY KEY,             -- local to this gatherer, assigned in its spool
    batch_id    integer NOT NULL,
    ticker      text NOT NULL
);
CREATE INDEX market_batch ON market (batch_id);

CREATE TABLE orderbook_delta (
    exchange_ts timestamptz NOT NULL,
    received_ns bigint NOT NULL,
    delta       bigint NOT NULL,                 -- 1/100 contract, signed
    book_hash   bigint NOT NULL,                 -- H after the event, bits of an unsigned 64-bit value
    market_id   integer NOT NULL,
    run_id      integer NOT NULL,
    seq         integer NOT NULL,                -- low 32 bits, read as unsigned
    batch_id    integer NOT NULL,
    price       integer NOT NULL,                -- micro-dollars
    side        smallint NOT NULL,
    flags       smallint NOT NULL
) PARTITION BY RANGE (exchange_ts);
CREATE INDEX orderbook_delta_batch ON orderbook_delta USING brin (batch_id) WITH (pages_per_range = 16, autosummarize = on);
CREATE TABLE orderbook_delta_default PARTITION OF orderbook_delta DEFAULT;

CREATE TABLE orderbook_snapshot (
    exchange_ts timestamptz NOT NULL,            -- inferred: the latest exchange time seen before it
    received_ns bigint NOT NULL,
    book_hash   bigint NOT NULL,
    running_hash bigint NOT NULL,
    seq         bigint NOT NULL,
    market_id   integer NOT NULL,
    run_id      integer NOT NULL,
    batch_id    integer NOT NULL,
    verdict     smallint NOT NULL,
    flags       smallint NOT NULL,
    levels      bytea NOT NULL
);
CREATE INDEX orderbook_snapshot_batch ON orderbook_snapshot (batch_id);

CREATE TABLE trade (
    exchange_ts timestamptz NOT NULL,
    received_ns bigint NOT NULL,
    trade_id    uuid NOT NULL,
    count       bigint NOT NULL,
    seq         bigint NOT NULL,
    market_id   integer NOT NULL,
    run_id      integer NOT NULL,
    batch_id    integer NOT NULL,
    yes_price   integer NOT NULL,
    no_price    integer NOT NULL,
    taker_side  smallint NOT NULL,
    flags       smallint NOT NULL
);
CREATE INDEX trade_batch ON trade (batch_id);

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
    batch_id    integer NOT NULL,
    price       integer NOT NULL,
    yes_bid     integer NOT NULL,
    yes_ask     integer NOT NULL
);
CREATE INDEX ticker_batch ON ticker (batch_id);

CREATE TABLE control (
    batch_id    integer NOT NULL,
    ord         integer NOT NULL,
    received_ns bigint NOT NULL,
    seq         bigint NOT NULL,
    exchange_us bigint NOT NULL,
    conn_id     integer NOT NULL,
    run_id      integer NOT NULL,
    sid         integer NOT NULL,
    market_id   integer NOT NULL,
    kind        text NOT NULL,
    reason      text NOT NULL,
    detail      jsonb NOT NULL,
    PRIMARY KEY (batch_id, ord)
);
