"""Logs: one JSON object a line on stderr, or readable text on a terminal.

What holds: a repeated message cannot flood the disk (after EVENTS_PER_PERIOD of the same event in
PERIOD_S the rest are counted and the count is told with the next one that passes).

Does not do: files, rotation, shipping (the service manager's journal does).
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, MutableMapping
from typing import Any, Final, TextIO, cast

import structlog

EVENTS_PER_PERIOD: Final = 20
PERIOD_S: Final = 10.0
NAMES_MAX: Final = 2_000  # distinct events remembered

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class Sampler:
    """structlog processor: lets each event name through EVENTS_PER_PERIOD times a period."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._seen: dict[str, list[float]] = {}  # event -> [period start, count, suppressed]

    def __call__(
        self, _logger: Any, _method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        name = str(event.get("event", ""))
        now = self._monotonic()
        if name not in self._seen and len(self._seen) >= NAMES_MAX:
            self._seen.clear()
        state = self._seen.setdefault(name, [now, 0, 0])
        if now - state[0] >= PERIOD_S:
            suppressed = int(state[2])
            state[:] = [now, 0, 0]
            if suppressed:
                event["suppressed"] = suppressed
        state[1] += 1
        if state[1] > EVENTS_PER_PERIOD:
            state[2] += 1
            raise structlog.DropEvent
        return event


def setup(service: str, level: str = "info", stream: TextIO | None = None) -> None:
    """Configure structlog, and the standard library's logging of our dependencies, once."""
    out = stream or sys.stderr
    renderer: Any = (
        structlog.dev.ConsoleRenderer()
        if out.isatty()
        else structlog.processors.JSONRenderer(default=str)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            Sampler(),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.ExceptionRenderer(_traceback()),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(service=service)
    handler = logging.StreamHandler(out)
    handler.setFormatter(_Forwarded())
    logging.basicConfig(handlers=[handler], level=max(LEVELS[level], logging.WARNING), force=True)


def _traceback() -> structlog.tracebacks.ExceptionDictTransformer:
    """Tracebacks without local variables: those hold keys and connection strings."""
    return structlog.tracebacks.ExceptionDictTransformer(show_locals=False)


class _Forwarded(logging.Formatter):
    """A line of a dependency in the same JSON form."""

    def format(self, record: logging.LogRecord) -> str:
        body = {
            "event": record.getMessage(),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if record.exc_info:
            body["exception"] = self.formatException(record.exc_info)
        return str(structlog.processors.JSONRenderer()(None, "", body))


def get(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger that says which part of the service speaks."""
    return cast("structlog.typing.FilteringBoundLogger", structlog.get_logger(part=name))
