-- Hours of the lake that were read back and compared: `digest` is that of the objects they had then, so that a new
-- version of an hour is not taken for verified.
CREATE TABLE verified_hour (
    hour_us     bigint PRIMARY KEY,
    digest      text NOT NULL,
    verified_at timestamptz NOT NULL DEFAULT now()
);
