-- How far a reader has stored what it read: what lies behind it may be removed from the spool, no more.
-- A reader has no right on any table. This function is the one thing that it may do here, and its row is its own.

CREATE TABLE reader_cursor (
    reader      text PRIMARY KEY,                -- the role that told
    batch_id    integer NOT NULL,                -- this batch and all before it are stored at the reader
    told_at     timestamptz NOT NULL DEFAULT now()
);

CREATE FUNCTION tell_reader_cursor(told integer) RETURNS void
-- The tables are bound when the function is made, in whichever schema that is.
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    INSERT INTO reader_cursor (reader, batch_id) VALUES (session_user, told)
    ON CONFLICT (reader) DO UPDATE SET batch_id = excluded.batch_id, told_at = now();
END;

REVOKE ALL ON FUNCTION tell_reader_cursor(integer) FROM PUBLIC;
DO $$
BEGIN
    IF to_regrole('kalshi_deduplicator') IS NOT NULL THEN
        GRANT EXECUTE ON FUNCTION tell_reader_cursor(integer) TO kalshi_deduplicator;
    END IF;
END
$$;
