-- What it takes to write an object of the lake again, byte for byte, when it is lost: how far the tape was closed
-- when it was exported. 0: exported before this column was there.
ALTER TABLE export_object ADD COLUMN watermark_us bigint NOT NULL DEFAULT 0;
