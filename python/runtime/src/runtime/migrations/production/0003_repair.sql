-- What `tape repair` did to the past. Rows that it adds lie in the same tables as all others: new epochs of the
-- order book (numbered from 16777216 on), trades and ticker states that were missing. Nothing is changed or removed.

CREATE TABLE repair (
    repair_id   integer PRIMARY KEY,
    from_us     bigint NOT NULL,                 -- asked for, half open
    to_us       bigint NOT NULL,
    at_us       bigint NOT NULL,                 -- when
    reason      text NOT NULL,
    sources     jsonb NOT NULL,                  -- spools by their uid, addresses of REST
    found       jsonb NOT NULL                   -- counts
);
-- Where an added epoch stands. Coverage names it from from_us on, and the epoch after it from until_us on (0: none).
CREATE TABLE repair_epoch (
    market_id   integer NOT NULL,
    epoch       integer NOT NULL,
    repair_id   integer NOT NULL,
    after_epoch integer NOT NULL,                -- the deduplicator's epoch before it, 0: before the first
    from_us     bigint NOT NULL,
    until_us    bigint NOT NULL,
    gatherer    integer NOT NULL,
    run_id      integer NOT NULL,
    PRIMARY KEY (market_id, epoch)
);
-- What a spool proves beyond what was claimed before. market_id 0: every market (the channel trade).
CREATE TABLE repair_proof (
    repair_id   integer NOT NULL,
    ord         integer NOT NULL,
    market_id   integer NOT NULL,
    channel     text NOT NULL,
    gatherer    integer NOT NULL,
    run_id      integer NOT NULL,
    from_us     bigint NOT NULL,
    to_us       bigint NOT NULL,
    note        text NOT NULL,
    PRIMARY KEY (repair_id, ord)
);
CREATE INDEX repair_proof_time ON repair_proof (to_us, from_us);
-- Versions of an hour after its first: why there is another one, and the objects of the one before.
CREATE TABLE hour_version (
    hour_us     bigint NOT NULL,
    version     integer NOT NULL,                -- from 2
    repair_id   integer NOT NULL,
    previous    jsonb NOT NULL,                  -- key -> SHA-256
    exported    boolean NOT NULL DEFAULT false,  -- whether the lake has it
    PRIMARY KEY (hour_us, version)
);
