"""Logs: one JSON object a line on stderr, or readable text on a terminal.

What holds:
- A repeated message cannot flood the disk: after EVENTS_PER_PERIOD of one event in PERIOD_S the
  rest are counted. The count is told with the next one that passes (`suppressed`), or, where none
  comes, with the next line of anything (`left_out`), or at the end of the process.
- Every line has the process's own id (`process`), and what the service adds of itself; a line about
  a connection has its `conn_id` (the feed binds it).
- Every warning and error says what to do (`do`, from runtime.advice).

Does not do: files, rotation, shipping (the service manager's journal does).
"""

from __future__ import annotations

import atexit
import logging
import sys
import time
import uuid
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final, TextIO, cast

import structlog

from runtime.advice import ADVICE, FORWARDED

EVENTS_PER_PERIOD: Final = 20
PERIOD_S: Final = 10.0
NAMES_MAX: Final = 2_000  # distinct events remembered

PROCESS: Final = uuid.uuid4().hex[:8]
"""Of this process, from its start: lines of two lives of a service are told apart by it."""
ADVISED: Final = ("warning", "error")

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
        others = self.left_out(now - PERIOD_S)
        if others:
            event["left_out"] = others
        return event

    def left_out(self, before_s: float = float("inf")) -> dict[str, int]:
        """Event -> how many were suppressed in a period that began by then; told once."""
        found: dict[str, int] = {}
        for name, state in self._seen.items():
            if state[2] and state[0] <= before_s:
                found[name] = int(state[2])
                state[2] = 0
        return found


def advise(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog processor: `do`, where a line wants somebody and does not say what to do."""
    if event.get("level") in ADVISED and "do" not in event:
        told = ADVICE.get(str(event.get("event", "")))
        if told is not None:
            event["do"] = told
    return event


def setup(
    service: str,
    level: str = "info",
    stream: TextIO | None = None,
    fields: Mapping[str, str | int] | None = None,
) -> None:
    """Configure structlog, and the standard library's logging of our dependencies, once.

    `fields` stand on every line: the gatherer's name, the number of a process of several.
    """
    out, sampler = stream or sys.stderr, Sampler()
    renderer: Any = (
        structlog.dev.ConsoleRenderer()
        if out.isatty()
        else structlog.processors.JSONRenderer(default=str)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            sampler,
            advise,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.ExceptionRenderer(_traceback()),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(service=service, process=PROCESS, **(fields or {}))
    handler = logging.StreamHandler(out)
    handler.setFormatter(_Forwarded())
    handler.addFilter(_Sampled())
    _LAST.sampler = sampler
    logging.basicConfig(handlers=[handler], level=max(LEVELS[level], logging.WARNING), force=True)


def _traceback() -> structlog.tracebacks.ExceptionDictTransformer:
    """Tracebacks without local variables: those hold keys and connection strings."""
    return structlog.tracebacks.ExceptionDictTransformer(show_locals=False)


class _Last:
    """What is told when the process ends."""

    sampler: Sampler | None = None

    def __call__(self) -> None:
        left_out = self.sampler.left_out() if self.sampler is not None else {}
        if left_out:
            get("logs").info("lines were left out", counts=left_out)


_LAST: Final = _Last()
atexit.register(_LAST)


class _Sampled(logging.Filter):
    """Lines of dependencies, by logger: the same bound as ours."""

    def __init__(self) -> None:
        super().__init__()
        self._sampler = Sampler()

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            told = self._sampler(None, "", {"event": record.name})
        except structlog.DropEvent:
            return False
        record.suppressed = told.get("suppressed", 0)
        return True


class _Forwarded(logging.Formatter):
    """A line of a dependency in the same JSON form."""

    def format(self, record: logging.LogRecord) -> str:
        body: dict[str, Any] = {
            "event": record.getMessage(),
            "level": record.levelname.lower(),
            "logger": record.name,
            **structlog.contextvars.get_contextvars(),
            "do": FORWARDED,
        }
        if suppressed := getattr(record, "suppressed", 0):
            body["suppressed"] = suppressed
        if record.exc_info:
            body["exception"] = self.formatException(record.exc_info)
        return str(structlog.processors.JSONRenderer()(None, "", body))


def get(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger that says which part of the service speaks."""
    return cast("structlog.typing.FilteringBoundLogger", structlog.get_logger(part=name))
