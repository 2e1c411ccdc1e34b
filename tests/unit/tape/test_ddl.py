"""`tape ddl`."""

from __future__ import annotations

from typer.testing import CliRunner

from kalshilake import ddl
from tape.main import app
from tape.output import EXIT_REFUSED


def test_the_statements_are_printed_and_nothing_else() -> None:
    """They are piped into another program."""
    made = CliRunner().invoke(app, ["ddl", "s3://kalshi-data-prod", "--for", "trino"])
    assert made.exit_code == 0
    assert made.stdout == ddl.ddl("trino", "s3://kalshi-data-prod")


def test_a_directory_and_an_unknown_engine_are_refused() -> None:
    for args in (["ddl", "/var/lib/lake"], ["ddl", "s3://b", "--for", "presto"]):
        made = CliRunner().invoke(app, args)
        assert made.exit_code == EXIT_REFUSED
        assert made.stdout == ""
