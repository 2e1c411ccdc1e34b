-- Several mergers of one tape, each with its own markets (marketdata/share.py): what a merger needs to go on, and the
-- fence, are its own. A tape with one merger is that of shard 1.
ALTER TABLE merge_state DROP CONSTRAINT merge_state_pkey;
ALTER TABLE merge_state DROP COLUMN only_row;
ALTER TABLE merge_state
    ADD COLUMN shard integer NOT NULL DEFAULT 1,
    ADD COLUMN finished boolean NOT NULL DEFAULT false,  -- final mode: it has published everything
    ADD COLUMN let_on_us bigint NOT NULL DEFAULT 0,      -- shard 1: up to here the others wait for no export
    ADD PRIMARY KEY (shard);

ALTER TABLE gatherer_cursor DROP CONSTRAINT gatherer_cursor_pkey;
ALTER TABLE gatherer_cursor ADD COLUMN shard integer NOT NULL DEFAULT 1, ADD PRIMARY KEY (shard, gatherer);

ALTER TABLE arbiter_state DROP CONSTRAINT arbiter_state_pkey;
ALTER TABLE arbiter_state ADD COLUMN shard integer NOT NULL DEFAULT 1, ADD PRIMARY KEY (shard, name);
