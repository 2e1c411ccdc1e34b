-- Rows that a table above refused, one by one: what arrived is kept with its place in the spool.
-- The batch lies between the two positions; received_ns and seq name the frame in it.

CREATE TABLE refused_row (
    batch_id    integer NOT NULL,
    ord         integer NOT NULL,
    table_name  text NOT NULL,
    segment     integer NOT NULL,
    offset_bytes bigint NOT NULL,
    end_segment integer NOT NULL,
    end_offset_bytes bigint NOT NULL,
    received_ns bigint NOT NULL,
    market_id   integer NOT NULL,
    run_id      integer NOT NULL,
    seq         bigint NOT NULL,
    reason      text NOT NULL,                   -- the server's words
    row_bytes   bytea NOT NULL,                  -- native form of marketdata.rows; of a snapshot its levels
    PRIMARY KEY (batch_id, ord)
);
