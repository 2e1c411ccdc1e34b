-- Roles and rights of one cluster. Run at its making and at every start: repeating it changes nothing.
-- kalshi_gatherer makes and writes the tables, kalshi_deduplicator reads them, nobody else has a right.
\set ON_ERROR_STOP on
SET client_min_messages = warning;

SELECT 'CREATE ROLE kalshi_gatherer' WHERE to_regrole('kalshi_gatherer') IS NULL \gexec
SELECT 'CREATE ROLE kalshi_deduplicator' WHERE to_regrole('kalshi_deduplicator') IS NULL \gexec
-- The writer has no password: it comes over the socket and is known by its account.
ALTER ROLE kalshi_gatherer LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS CONNECTION LIMIT 6 PASSWORD NULL;
-- The reader's password is set by kalshi-reader.sql; without one it cannot log in.
ALTER ROLE kalshi_deduplicator LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS CONNECTION LIMIT 6;
-- No right depends on this; it turns a mistake into an error at the first statement.
ALTER ROLE kalshi_deduplicator SET default_transaction_read_only = on;

SELECT 'CREATE DATABASE kalshi' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'kalshi') \gexec
-- PUBLIC may connect and make temporary tables by default.
REVOKE ALL ON DATABASE kalshi, postgres, template1 FROM PUBLIC;
GRANT CONNECT ON DATABASE kalshi TO kalshi_gatherer, kalshi_deduplicator;

\connect kalshi
SET client_min_messages = warning;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO kalshi_gatherer;
GRANT USAGE ON SCHEMA public TO kalshi_deduplicator;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO kalshi_deduplicator;
-- Partitions and later migrations too.
ALTER DEFAULT PRIVILEGES FOR ROLE kalshi_gatherer IN SCHEMA public GRANT SELECT ON TABLES TO kalshi_deduplicator;
-- Everybody may make large objects by default: the one way to write without a right on a table.
REVOKE EXECUTE ON FUNCTION lo_creat(integer), lo_create(oid), lo_from_bytea(oid, bytea) FROM PUBLIC;
