-- How far a reader has read back and verified in the lake what came out of here: what lies behind it may be removed
-- from this database when it is old enough, no more. Told by the one function, like the cursor.

ALTER TABLE reader_cursor ADD COLUMN archived_batch integer NOT NULL DEFAULT 0;

CREATE FUNCTION tell_reader_archive(told integer) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    INSERT INTO reader_cursor (reader, batch_id, archived_batch) VALUES (session_user, 0, told)
    ON CONFLICT (reader) DO UPDATE SET archived_batch = excluded.archived_batch, told_at = now();
END;

REVOKE ALL ON FUNCTION tell_reader_archive(integer) FROM PUBLIC;
DO $$
BEGIN
    IF to_regrole('kalshi_deduplicator') IS NOT NULL THEN
        GRANT EXECUTE ON FUNCTION tell_reader_archive(integer) TO kalshi_deduplicator;
    END IF;
END
$$;
