-- What REST said of the recording, and our clock against the exchange's: evidence beside the rows, not part of them.
-- It stands in the second database because the hot one is a function of the spool, and a book by REST has no place in any
-- sequence. The gatherer removes what is older than 14 days (gatherer.side_rows).

-- One row for each request: what was asked for, the hash that REST's book gave (0: none), and the verdict
-- (marketdata.rest_books.AuditVerdict). Arrays, because a row for each book would be 9 million a day.
CREATE TABLE rest_audit (
    sent_ns     bigint NOT NULL,
    received_ns bigint NOT NULL,
    tickers     text[] NOT NULL,
    book_hashes bigint[] NOT NULL,               -- bits of unsigned 64-bit values
    verdicts    smallint[] NOT NULL
);
CREATE INDEX rest_audit_sent ON rest_audit USING brin (sent_ns) WITH (autosummarize = on);
CREATE VIEW rest_book_audit AS
    SELECT sent_ns, received_ns, each.ticker, each.book_hash, each.verdict
    FROM rest_audit, unnest(tickers, book_hashes, verdicts) AS each (ticker, book_hash, verdict);

-- A book that differed twice in a row while ours stood still. Never removed.
CREATE TABLE rest_difference (
    ticker      text NOT NULL,
    sent_ns     bigint NOT NULL,
    received_ns bigint NOT NULL,
    rest_hash   bigint NOT NULL,
    our_hash    bigint NOT NULL,
    run_id      integer NOT NULL,                -- of our book in the hot database
    exchange_us bigint NOT NULL,                 -- of its last change
    PRIMARY KEY (ticker, sent_ns)
);

-- Our wall clock minus the exchange's, about once a minute: between low and high, from the Date of REST answers (whole
-- seconds) and the times of request and answer; and what the kernel says of its own clock (adjtimex).
CREATE TABLE clock_offsets (
    at_ns       bigint NOT NULL,                 -- by the clock that is judged
    low_ns      bigint,                          -- null: no answer told a date
    high_ns     bigint,
    answers     integer NOT NULL,                -- whose bounds these are
    contradictions bigint NOT NULL,              -- since the start: answers that no steady clock explains
    stepped_ns  bigint NOT NULL,                 -- since the row before: how far the wall clock left the monotonic one
    synchronised boolean,                        -- null: the kernel was not asked or did not answer
    kernel_offset_ns bigint,
    kernel_error_ns bigint,                      -- its own estimate
    PRIMARY KEY (at_ns)
);
