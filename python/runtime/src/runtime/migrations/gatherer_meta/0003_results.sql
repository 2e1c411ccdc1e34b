-- How markets ended: the newest content of each that has a result.
CREATE VIEW market_result AS
    SELECT ticker, valid_from_ns, status,
           body->>'result' AS result,
           body->>'settlement_value_dollars' AS settlement_value_dollars,
           body->>'settlement_ts' AS settlement_ts
    FROM market_current
    WHERE coalesce(body->>'result', '') <> '';
