-- Days whose rows left production once the lake had given all of them back. Their hours are not exported again: production
-- does not know them any more. Evidence for coverage, epochs, gaps and what was kept aside stay.
CREATE TABLE dropped_day (
    day_us      bigint PRIMARY KEY,
    dropped_at  timestamptz NOT NULL DEFAULT now()
);
