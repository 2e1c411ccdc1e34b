-- The reader's password, as the verifier that the server compares with (docs/units.md makes one).
\set ON_ERROR_STOP on
\set verifier `cat "$CREDENTIALS_DIRECTORY/kalshi-reader"`
SELECT :'verifier' ~ '^SCRAM-SHA-256\$[0-9]+:[A-Za-z0-9+/=]+\$[A-Za-z0-9+/=]+:[A-Za-z0-9+/=]+$' AS is_verifier \gset
\if :is_verifier
ALTER ROLE kalshi_deduplicator PASSWORD :'verifier';
\else
-- A clear password would be taken as well, and would then be on this host.
DO $$ BEGIN RAISE EXCEPTION 'the credential kalshi-reader holds no SCRAM-SHA-256 verifier'; END $$;
\endif
