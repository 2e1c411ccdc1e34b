"""The command `tape`: every subcommand in one place.

Exit codes are in tape.output. A fault of the command line is one line on standard error.
"""

from __future__ import annotations

import sys

import typer
from typer.exceptions import TyperException

from tape.book import book
from tape.capture import capture
from tape.compact import compact
from tape.coverage import coverage
from tape.ddl import ddl
from tape.demo import demo
from tape.deploy import deploy
from tape.doctor import doctor
from tape.exchange import exchange
from tape.export import export
from tape.output import EXIT_REFUSED
from tape.plan import plan
from tape.plot import plot
from tape.repair import repair
from tape.replay import replay
from tape.restore import restore
from tape.root import root
from tape.secrets import app as secrets_app
from tape.series import bars, books, quotes, timeline
from tape.spool import app as spool_app
from tape.sql import events, markets, sql
from tape.status import status
from tape.trades import trades
from tape.verify import verify

app = typer.Typer(
    name="tape",
    help="Record, merge and prove the Kalshi exchange; read and check the tape.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
commands = (
    demo,
    exchange,
    capture,
    doctor,
    status,
    plan,
    coverage,
    trades,
    book,
    books,
    quotes,
    timeline,
    bars,
    markets,
    events,
    sql,
    ddl,
    export,
    plot,
    replay,
    verify,
    root,
    compact,
    restore,
    repair,
    deploy,
)
for command in commands:
    app.command()(command)
app.add_typer(spool_app)
app.add_typer(secrets_app)


def main(arguments: list[str] | None = None) -> None:
    """Entry point; exits with the command's code."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(given or ["--help"], standalone_mode=False, prog_name="tape")
    except TyperException as e:
        sys.stderr.write(f"tape: {e.format_message()}\n")
        sys.exit(EXIT_REFUSED)
    except typer.Abort:
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
