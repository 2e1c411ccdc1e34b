"""What to do about each warning and error of the logs, by its event: one table.

Purpose: a line that wants somebody says what to do, or where it stands; the reader of a log has no
source beside him. `logs` adds it as `do` to every warning and error that does not say it itself.
What holds: every warning and error that a service can write has its line here or brings its own
`do`, and no line is of an event that nobody writes (tests/rules/test_logs.py).
Does not do: deciding anything.
"""

from __future__ import annotations

from typing import Final

NOTHING: Final = "nothing: it is tried again"
_BOOK: Final = "docs/runbook.md, "
_AGAIN: Final = "nothing: it is started again; if it goes on: " + _BOOK

ADVICE: Final[dict[str, str]] = {
    # gatherer
    "a body was not understood": _BOOK + "NotUnderstood",
    "a book differs from REST's": _BOOK + "RestDiffers",
    "a list of markets is refused": "the list is read whole instead; see the status",
    "a window of trades is refused": "nothing: the exchange lists no trades so old",
    "connect failed": NOTHING + "; if it goes on: " + _BOOK + "Reconnecting",
    "database": NOTHING + "; rows wait in the spool; if it goes on: " + _BOOK + "SinkBehind",
    "discovery round failed": NOTHING + "; new markets are found later",
    "giving the connection up": NOTHING + "; if it goes on: " + _BOOK + "Silence",
    "hot rows were not removed": NOTHING + "; " + _BOOK + "Old rows are not removed",
    "key file not taken up": "put a whole PEM key into the file; the old key is used until then",
    "markets were not told": NOTHING + "; the next round lists them",
    "rows refused": "read refused_row in the hot database; " + _BOOK + "Rows are refused",
    "spool housekeeping failed": NOTHING + "; if it goes on: " + _BOOK + "SpoolDiskLow",
    "spool is full: reading pauses": _BOOK + "SpoolRefused",
    "the clock was set": _BOOK + "ClockStepped",
    "the exchange's schedule is not known": NOTHING,
    "the exchange's status is not known": NOTHING,
    "trades are not compared": NOTHING + "; if it goes on: " + _BOOK + "RestTradesBehind",
    "trades before the look-back are not asked for": "raise KT_TRADE_LOOKBACK_S for the next start",
    "trades came by REST only": "nothing: they are on the tape; if it goes on, a trade feed loses",
    # deduplicator
    "a gatherer takes no word of how far we are": _BOOK + "Old rows are not removed",
    "a batch was not looked at": "nothing: only the page lacks it; report the traceback",
    "a gatherer was replaced": "nothing, if somebody replaced it; else " + _BOOK + "GathererLag",
    "chunks stay uncompressed": NOTHING + "; the disk fills faster",
    "export failed": NOTHING + "; if it goes on: " + _BOOK + "ExportBehind",
    "held up": _BOOK + "NothingOnTape",
    "invariant broken": _BOOK + "InvariantBroken",
    "keyframes could not be proven and were left out": "nothing: readers start from an earlier one",
    "live rows are begun again": NOTHING,
    "live rows are given up": "restart when convenient; the tape does not depend on them",
    "live rows are not on the tape": _BOOK + "LiveContradicted",
    "lost and made again": "find out who took the object away; it is there again",
    "lost, and production gives other bytes now": _BOOK + "Old rows are not removed",
    "old days were not removed": NOTHING + "; " + _BOOK + "Old days in production",
    "rows are gone": "tape repair with the gatherer's spool; docs/repair.md",
    "starting again from production": NOTHING,
    "the exchange changed": _BOOK + "ExchangeChanged",
    "the lake does not give back what was exported": _BOOK + "Old rows are not removed",
    "the lake has another hour than production": "tape verify names it; docs/repair.md",
    "the lake is looked at later": NOTHING + "; if it goes on: " + _BOOK + "ExportBehind",
    "the lake's list begins anew": "find out who took the lake's versions away; docs/compaction.md",
    "the others contradict a gatherer": _BOOK + "SuspectGatherer",
    # all
    "a process ended": "nothing: it is started again; its own lines say why",
    "a process is ended by force": "nothing: it did not stop in time",
    "a silent process is ended": _AGAIN + "TargetDown",
    "journalctl ended": "nothing: it is started again; if it goes on: is systemd-journald well?",
    "no status": "is the service of this host running? " + _BOOK + "TargetDown",
    "part did not stop in time": "nothing: the next start recovers from the spool or production",
    "part failed": "the service ends and is started again; " + _BOOK + "TargetDown",
    "stop failed": "nothing: the next start recovers from the spool or production",
}
FORWARDED: Final = "a dependency's own line: nothing, unless a line of ours beside it says so"
