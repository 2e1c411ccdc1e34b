-- The gatherer's second database (port 5433 in the specification): markets, events, series with history.
-- A row per distinct content: valid_from tells when this content was first seen here.
CREATE TABLE series_history (
    series_ticker text NOT NULL,
    valid_from_ns bigint NOT NULL,
    content_hash  bytea NOT NULL,
    body          jsonb NOT NULL,
    PRIMARY KEY (series_ticker, valid_from_ns)
);
CREATE TABLE event_history (
    event_ticker  text NOT NULL,
    valid_from_ns bigint NOT NULL,
    content_hash  bytea NOT NULL,
    body          jsonb NOT NULL,
    PRIMARY KEY (event_ticker, valid_from_ns)
);
CREATE TABLE market_history (
    ticker        text NOT NULL,
    valid_from_ns bigint NOT NULL,
    content_hash  bytea NOT NULL,
    status        text NOT NULL,
    body          jsonb NOT NULL,
    PRIMARY KEY (ticker, valid_from_ns)
);
CREATE VIEW market_current AS
    SELECT DISTINCT ON (ticker) ticker, valid_from_ns, status, body
    FROM market_history ORDER BY ticker, valid_from_ns DESC;
