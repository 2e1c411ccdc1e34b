-- Events that are proven and whose window has not closed: beside the tape, on which they follow under the same number.
-- Derived: whoever begins to write them removes what is there, and the tape does not depend on them (dedup/live_path.py).
CREATE TABLE live_delta (
    live_id     bigint NOT NULL,                 -- ascends within a market in the order of the events
    exchange_ts timestamptz NOT NULL,
    received_ns bigint NOT NULL,                 -- at the gatherer that brought it first to us
    delta       bigint NOT NULL,
    book_hash   bigint NOT NULL,
    seq         bigint NOT NULL,                 -- of that gatherer's run
    market_id   integer NOT NULL,
    epoch       integer NOT NULL,                -- number that the tape will give it; if it gives another one, or
    market_seq  integer NOT NULL,                -- another event this number, the row is taken back and counted
    price       integer NOT NULL,
    run_id      integer NOT NULL,
    gatherer    smallint NOT NULL,
    side        smallint NOT NULL,
    flags       smallint NOT NULL,
    shard       smallint NOT NULL,               -- the merger that wrote it
    published_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (market_id, live_id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50000,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 200000);
-- Written in the transaction of the tape: live rows up to this one are on it, or were taken back.
CREATE TABLE live_done (
    market_id   integer PRIMARY KEY,
    live_id     bigint NOT NULL
) WITH (fillfactor = 50);
-- A transaction of live rows holds a share lock on its generation; a new beginning raises it.
CREATE TABLE live_generation (
    shard       integer PRIMARY KEY,
    generation  bigint NOT NULL
);
-- The tape and, behind it, what is proven and not on it yet; each event once, in the order (epoch, market_seq).
CREATE VIEW orderbook_now AS
SELECT market_id, epoch, market_seq, exchange_ts, received_ns, side, price, delta, book_hash, flags, sources,
       false AS live
FROM orderbook_delta
UNION ALL
SELECT l.market_id, l.epoch, l.market_seq, l.exchange_ts, l.received_ns, l.side, l.price, l.delta, l.book_hash, l.flags,
       (1 << l.gatherer)::smallint, true
FROM live_delta AS l LEFT JOIN live_done AS d USING (market_id)
WHERE l.live_id > coalesce(d.live_id, 0);

-- By what windows closed: "watermark" where everything that belongs to them was there, else the reasons for not waiting.
CREATE TABLE window_closing (
    shard       integer NOT NULL,
    reason      text NOT NULL,
    windows     bigint NOT NULL,
    PRIMARY KEY (shard, reason)
);
-- Each window that closed otherwise than by watermark.
CREATE TABLE window_unwaited (
    shard       integer NOT NULL,
    window_index bigint NOT NULL,
    to_us       bigint NOT NULL,
    reason      text NOT NULL,
    detail      text NOT NULL,
    PRIMARY KEY (shard, window_index)
);
