-- What had been seen of the exchange when an hour was exported last (dedup/exchange_note.py), so that its commit record
-- in the lake can be made again with the same bytes.
ALTER TABLE lake_hour ADD COLUMN exchange text NOT NULL DEFAULT '';
