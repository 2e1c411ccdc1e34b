"""What a coming schema does to the programs of the release before, statement by statement."""

# ruff: noqa: E501 (one statement a line)

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from deploy import migrations
from deploy.errors import HostRefusedError, PlanError
from deploy.migrations import BREAKS_OLDER, File, classify, compare, insist, statements
from deploy.shell import COPY_TIMEOUT_S, SHELL_TIMEOUT_S, Answer
from runtime import postgres

SHIPPED = {
    folder: tuple(File(m.version, m.name, m.sql) for m in postgres.migrations(folder))
    for folder in ("gatherer_hot", "gatherer_meta", "production")
}
BASE = (
    File(
        1,
        "initial",
        "CREATE TABLE a (x int, y text); CREATE TABLE c (d int PRIMARY KEY);"
        "CREATE VIEW v AS SELECT x FROM a; CREATE INDEX i ON a (x);"
        "CREATE FUNCTION f(z int) RETURNS int LANGUAGE sql AS $$ SELECT 1 $$;"
        "CREATE TABLE p (t int) PARTITION BY RANGE (t)",
    ),
)
ADDS = """
CREATE TABLE b (c int NOT NULL PRIMARY KEY, d text UNIQUE CHECK (d <> ''))
CREATE TABLE b (at timestamptz NOT NULL DEFAULT clock_timestamp()) WITH (fillfactor = 50)
CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (1) TO (2)
CREATE TABLE b AS SELECT x, count(*) AS n FROM a GROUP BY x
CREATE INDEX j ON a USING brin (x) WITH (autosummarize = on)
CREATE SCHEMA s
CREATE SCHEMA IF NOT EXISTS s
CREATE SEQUENCE s
CREATE TYPE t AS ENUM ('a')
CREATE VIEW w AS SELECT x FROM a
CREATE FUNCTION g(a int) RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT CASE WHEN a > 1 THEN 1 END; SELECT 2; END
CREATE FUNCTION g(a int) RETURNS void LANGUAGE plpgsql AS $x$ BEGIN DELETE FROM a; END $x$
ALTER TABLE a ADD COLUMN b int
ALTER TABLE a ADD b int NULL
ALTER TABLE ONLY a ADD COLUMN IF NOT EXISTS b int NOT NULL DEFAULT 0
ALTER TABLE a ADD COLUMN b int NOT NULL DEFAULT -1, ADD COLUMN e text NOT NULL DEFAULT ''
ALTER TABLE a ADD COLUMN b bigint[] NOT NULL DEFAULT '{}'
ALTER TABLE a ADD COLUMN b jsonb NOT NULL DEFAULT '{}'::jsonb
ALTER TABLE a ADD COLUMN b boolean NOT NULL DEFAULT false
ALTER TABLE a ADD COLUMN b timestamptz NOT NULL DEFAULT now()
GRANT SELECT ON a TO somebody
COMMENT ON TABLE a IS 'rows; as they came'
DO $$ BEGIN IF to_regrole('r') IS NOT NULL THEN GRANT SELECT ON a TO r; GRANT SELECT ON c TO r; END IF; END $$
CREATE TABLE b (x int); INSERT INTO b SELECT x FROM a; UPDATE b SET x = 1; DELETE FROM b
CREATE TABLE b (x int); CREATE UNIQUE INDEX k ON b (x); ALTER TABLE b ALTER COLUMN x SET NOT NULL
CREATE TABLE b (x int); DROP TABLE b
CREATE FUNCTION g() RETURNS int LANGUAGE sql AS $$ SELECT 1; $$; REVOKE ALL ON FUNCTION g() FROM PUBLIC
CREATE TABLE b (x int PRIMARY KEY); CREATE TABLE e (x int REFERENCES b (x))
""".strip().splitlines()
REFUSED = """
DROP TABLE a => drops a table
CREATE TABLE b (x int); DROP TABLE b, a => drops a table
DROP VIEW v => drops a view
DROP INDEX i => drops a index
DROP FUNCTION f(int) => drops a function
DROP SCHEMA public CASCADE => drops a schema
ALTER TABLE a DROP COLUMN y => drops what earlier programs may use
ALTER TABLE a DROP CONSTRAINT k => drops what earlier programs may use
ALTER TABLE a RENAME TO b => renames it
ALTER TABLE a RENAME COLUMN x TO z => renames a column
ALTER INDEX i RENAME TO j => not known here
ALTER VIEW v RENAME TO w => not known here
ALTER TABLE a ALTER COLUMN x TYPE bigint => changes a column
ALTER TABLE a ALTER COLUMN x SET NOT NULL => changes a column
ALTER TABLE a ALTER COLUMN x DROP NOT NULL => changes a column
ALTER TABLE a ALTER COLUMN x SET DEFAULT 4 => changes a column
ALTER TABLE a ADD COLUMN b int NOT NULL => not null without a default
ALTER TABLE a ADD COLUMN b int NOT NULL DEFAULT NULL => not null without a default
ALTER TABLE a ADD COLUMN b int, ADD COLUMN e int NOT NULL => not null without a default
ALTER TABLE a ADD COLUMN b float DEFAULT random() => rewrites the table
ALTER TABLE a ADD COLUMN b int DEFAULT f(1) => rewrites the table
ALTER TABLE a ADD COLUMN b serial => may rewrite
ALTER TABLE a ADD COLUMN b bigserial => may rewrite
ALTER TABLE a ADD COLUMN b some_domain => may rewrite or refuse
ALTER TABLE a ADD COLUMN b int GENERATED ALWAYS AS IDENTITY => may refuse
ALTER TABLE a ADD COLUMN b int GENERATED ALWAYS AS (x * 2) STORED => may refuse
ALTER TABLE a ADD COLUMN b int UNIQUE => may refuse
ALTER TABLE a ADD COLUMN b int PRIMARY KEY => may refuse
ALTER TABLE a ADD COLUMN b int CHECK (b > 0) => may refuse
ALTER TABLE a ADD COLUMN b int REFERENCES c (d) => may refuse
ALTER TABLE a ADD CONSTRAINT u UNIQUE (x) => may refuse what earlier programs write
ALTER TABLE a ADD PRIMARY KEY (x) => may refuse what earlier programs write
ALTER TABLE a ADD CHECK (x > 0) NOT VALID => not known here
ALTER TABLE a ADD COLUMN b int, DROP COLUMN y => drops what
ALTER TABLE a SET (fillfactor = 50) => not known here
ALTER TABLE p DETACH PARTITION p_1 => not known here
ALTER TABLE p ATTACH PARTITION a FOR VALUES FROM (1) TO (2) => not known here
ALTER TABLE a ENABLE ROW LEVEL SECURITY => not known here
ALTER TABLE a OWNER TO somebody => not known here
ALTER TYPE t ADD VALUE 'x' => not known here
TRUNCATE a => removes rows
DELETE FROM a => changes rows of a
UPDATE a SET x = 1 => changes rows of a
INSERT INTO a (x) VALUES (1) => changes rows of a
MERGE INTO a USING c ON a.x = c.d WHEN MATCHED THEN DELETE => changes rows of a
CREATE TABLE b (x int); WITH gone AS (DELETE FROM a RETURNING x) INSERT INTO b SELECT x FROM gone => changes rows of a
CREATE TABLE b (x int); INSERT INTO b SELECT f(1) => calls f
CREATE TABLE b AS SELECT f(1) AS x => calls f
CREATE TABLE b AS WITH gone AS (DELETE FROM a RETURNING x) SELECT x FROM gone => writes within a query
REVOKE SELECT ON a FROM somebody => takes away a right
REVOKE ALL ON FUNCTION f(int) FROM PUBLIC => takes away a right
REVOKE somebody FROM another => not known here
CREATE UNIQUE INDEX u ON a (x) => makes rows of a refusable
CREATE INDEX CONCURRENTLY k ON a (x) => in no transaction
CREATE TRIGGER t BEFORE INSERT ON a FOR EACH ROW EXECUTE FUNCTION f() => not known here
CREATE RULE r AS ON INSERT TO a DO INSTEAD NOTHING => not known here
CREATE POLICY o ON a => not known here
CREATE ROLE somebody => not known here
CREATE EXTENSION hstore => not known here
CREATE OR REPLACE VIEW v AS SELECT 1 AS x => replaces v
CREATE OR REPLACE FUNCTION f(z int) RETURNS int LANGUAGE sql AS $$ SELECT 2 $$ => changes what calls of f
CREATE FUNCTION f(z bigint) RETURNS int LANGUAGE sql AS $$ SELECT 2 $$ => changes what calls of f
CREATE MATERIALIZED VIEW w AS SELECT 1 AS x => not known here
CREATE TEMP TABLE a (x int) => hides a
CREATE TABLE a (x int) => there already
CREATE TABLE IF NOT EXISTS a (x int) => there already
CREATE TABLE b (y int) INHERITS (a) => adds its rows
CREATE TABLE b (x int REFERENCES c (d)) => remove rows of c
CREATE TABLE b (x int, FOREIGN KEY (x) REFERENCES c (d)) => remove rows of c
CREATE TABLE b (x int); ALTER TABLE b RENAME TO e => renames it
SELECT f(1) => not known here
SELECT 1 => not known here
SET search_path = elsewhere => not known here
LOCK TABLE a => not known here
CALL f(1) => not known here
COPY a FROM '/x' => not known here
ANALYZE a => not known here
COMMIT => not known here
DO $$ BEGIN DELETE FROM a; END $$ => not known here
DO $$ BEGIN IF to_regrole('r') IS NOT NULL THEN DELETE FROM a; END IF; END $$ => changes rows of a
DO $$ BEGIN IF f(1) > 0 THEN GRANT SELECT ON a TO r; END IF; END $$ => not known here
this is no statement => not
""".strip().splitlines()


def judged(sql: str) -> list[str]:
    return [v.refused for v in classify(BASE, [File(2, "more", sql)])]


@pytest.mark.parametrize("sql", ADDS)
def test_what_only_adds_is_let_through(sql: str) -> None:
    assert not any(judged(sql)), judged(sql)


@pytest.mark.parametrize("line", REFUSED)
def test_what_an_earlier_program_may_feel_is_refused_with_the_reason(line: str) -> None:
    """Negative control, one for each kind."""
    sql, _, says = line.rpartition(" => ")
    refused = [why for why in judged(sql) if why]
    assert len(refused) == 1, refused
    assert says in refused[0]
    with pytest.raises(PlanError, match="cannot go on beside this schema"):
        insist([compare("production", BASE, (*BASE, File(2, "more", sql)))])


def test_an_index_on_a_table_with_rows_says_who_waits() -> None:
    (verdict,) = classify(BASE, [File(2, "index", "-- fast\nCREATE INDEX j ON a (x)")])
    assert (verdict.refused, verdict.waits) == ("", "writers of a wait while it is built")
    assert (
        str(verdict) == "0002_index: writers of a wait while it is built: CREATE INDEX j ON a (x)"
    )
    own = classify(BASE, [File(2, "own", "CREATE TABLE b (x int); CREATE INDEX j ON b (x)")])
    assert not any(v.waits for v in own)


@pytest.mark.parametrize("folder", sorted(SHIPPED))
def test_a_database_that_is_empty_takes_everything_that_is_shipped(folder: str) -> None:
    change = compare(folder, (), SHIPPED[folder])
    assert change.refused == ()
    assert change.new == SHIPPED[folder]
    assert len(change.verdicts) > len(change.new)


@pytest.mark.parametrize("folder", sorted(SHIPPED))
def test_shipped_files_one_after_the_other(folder: str) -> None:
    """What each did to the release before it. Only the shards of the merge took something away."""
    files = SHIPPED[folder]
    refused = {
        files[n].title: [v.refused for v in classify(files[:n], [files[n]]) if v.refused]
        for n in range(1, len(files))
    }
    by_shards = refused.pop("0006_shards", None)
    assert not any(refused.values()), refused
    if folder == "production":
        assert by_shards is not None
        assert "merge_state: drops what earlier programs may use" in by_shards


@pytest.mark.parametrize("folder", sorted(SHIPPED))
def test_every_statement_that_is_shipped_is_one_statement(folder: str) -> None:
    """The splitter: each part begins with a verb, and nothing but comments lies between."""
    for file in SHIPPED[folder]:
        found = statements(file.sql)
        verbs = {statement.split()[0] for statement in found}
        assert verbs <= {"CREATE", "ALTER", "REVOKE", "DO"}, verbs
        for statement in found:
            assert file.sql.count(statement) == 1


def test_what_breaks_older_programs_says_so_in_the_words_that_the_services_look_for() -> None:
    assert BREAKS_OLDER == postgres.BREAKS_OLDER
    marked = File(2, "less", f"{BREAKS_OLDER}: no more c\nCREATE TABLE b (x int)")
    assert [v.refused for v in classify(BASE, [marked])] == ["says itself that it breaks them", ""]
    assert not any(v.refused for v in classify((), [marked]))


@pytest.mark.parametrize("folder", sorted(SHIPPED))
def test_a_shipped_file_that_takes_something_away_says_so(folder: str) -> None:
    """From here on: programs of a release before it refuse the database (runtime.postgres)."""
    settled = {"gatherer_hot": 4, "gatherer_meta": 3, "production": 8}[folder]
    files = SHIPPED[folder]
    for n in range(settled, len(files)):
        if any(v.refused for v in classify(files[:n], [files[n]])):
            assert BREAKS_OLDER in files[n].sql, files[n].title


def test_a_changed_a_renamed_and_a_lost_file_are_refused() -> None:
    two = (*BASE, File(2, "more", "CREATE TABLE b (x int)"))
    changed = (*BASE, File(2, "more", "CREATE TABLE b (x bigint)"), File(3, "x", "SELECT 1"))
    with pytest.raises(PlanError, match="production: 0002_more, with other contents"):
        compare("production", two, changed)
    with pytest.raises(PlanError, match="0002_more became 0002_other"):
        compare("production", two, (*BASE, File(2, "other", "SELECT 1")))
    with pytest.raises(PlanError, match=r"coming release is numbered \[1, 3\]"):
        compare("production", two, (*BASE, File(3, "x", "SELECT 1")))
    with pytest.raises(PlanError, match=r"running release is numbered \[2\]"):
        compare("production", two[1:], two)


def test_an_older_release_is_judged_by_what_it_does_not_know() -> None:
    """A rollback leaves the newer schema where it is."""
    added = compare("production", (*BASE, File(2, "more", "CREATE TABLE b (x int)")), BASE)
    assert ([f.version for f in added.unknown], added.new, added.refused) == ([2], (), ())
    insist([added])
    taken = compare("production", (*BASE, File(2, "less", "DROP TABLE a")), BASE)
    with pytest.raises(PlanError, match="production/0002_less: drops a table: DROP TABLE a"):
        insist([taken])
    assert compare("production", BASE, BASE).verdicts == ()


# --- reading


def closure(root: Path) -> Path:
    """The part of a closure that holds migrations."""
    for folder, files in SHIPPED.items():
        place = root / "lib/python3.13/site-packages/runtime/migrations" / folder
        place.mkdir(parents=True)
        for file in files:
            (place / f"{file.title}.sql").write_text(file.sql, encoding="utf-8")
    return root


class LocalShell:
    """The scripts of a host, run by this machine's sh."""

    def __init__(self, cut: int | None = None) -> None:
        self._cut = cut

    async def run(
        self, host: str, script: str, *, stdin: bytes = b"", timeout_s: float = SHELL_TIMEOUT_S
    ) -> Answer:
        ran = await asyncio.to_thread(
            subprocess.run, ["/bin/sh", "-euc", script], capture_output=True, input=stdin
        )
        return Answer(ran.returncode, ran.stdout.decode()[: self._cut], ran.stderr.decode())

    async def copy(self, host: str, paths: object, *, timeout_s: float = COPY_TIMEOUT_S) -> Answer:
        raise NotImplementedError


async def test_files_of_a_closure_here_and_on_a_host_are_those_that_were_shipped(
    tmp_path: Path,
) -> None:
    place = closure(tmp_path / "closure")
    assert migrations.of_closure(place) == SHIPPED
    assert await migrations.of_host(LocalShell(), "gatherer-1", str(place)) == SHIPPED
    assert set(SHIPPED) == {f for folders in migrations.FOLDERS.values() for f in folders}


async def test_a_host_before_its_first_release_has_none(tmp_path: Path) -> None:
    assert await migrations.of_host(LocalShell(), "gatherer-1", str(tmp_path / "none")) == {}


async def test_what_is_no_closure_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="has 0 places of migrations"):
        migrations.of_closure(tmp_path)
    with pytest.raises(HostRefusedError, match=r"gatherer-1: .* has no migrations"):
        await migrations.of_host(LocalShell(), "gatherer-1", str(tmp_path))
    place = closure(tmp_path / "closure")
    odd = place / "lib/python3.13/site-packages/runtime/migrations/production/notes.sql"
    odd.write_text("x")
    with pytest.raises(PlanError, match=r"production/notes\.sql, which is no migration"):
        migrations.of_closure(place)


async def test_what_did_not_come_whole_is_refused(tmp_path: Path) -> None:
    place = closure(tmp_path / "closure")
    with pytest.raises(HostRefusedError, match="did not come whole"):
        await migrations.of_host(LocalShell(cut=9_000), "gatherer-1", str(place))
