"""runtime.logs: one JSON object a line, no flood, no secrets in tracebacks."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from runtime import logs
from runtime.advice import ADVICE


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    out = io.StringIO()
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    logs.setup("g1", "info", out, {"gatherer": "g1"})
    yield out
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_message_is_one_json_object_with_service_part_and_time(stream: io.StringIO) -> None:
    logs.get("feed").info("connected", url="wss://x", conn=3)
    (line,) = lines(stream)
    assert (line["service"], line["part"], line["event"]) == ("g1", "feed", "connected")
    assert (line["level"], line["conn"]) == ("info", 3)
    assert line["timestamp"].endswith("Z")


def test_messages_below_the_level_are_not_written(stream: io.StringIO) -> None:
    logs.get("feed").debug("noise")
    assert lines(stream) == []


def test_a_traceback_holds_no_local_variables(stream: io.StringIO) -> None:
    """Locals hold private keys and connection strings."""

    def sign(key: str) -> int:
        return int("wrong") + len(key)

    try:
        sign("hunter2")
    except ValueError:
        logs.get("feed").exception("failed")
    text = stream.getvalue()
    assert "ValueError" in text
    assert "hunter2" not in text


def test_a_flood_of_one_event_is_cut_and_counted(stream: io.StringIO) -> None:
    """A market that breaks a rule a thousand times a second must not fill the disk."""
    for _ in range(1_000):
        logs.get("feed").warning("negative level")
    logs.get("feed").warning("something else")
    assert len(lines(stream)) == logs.EVENTS_PER_PERIOD + 1


def test_the_number_suppressed_is_told_in_the_next_period() -> None:
    now = 0.0
    sampler = logs.Sampler(monotonic=lambda: now)
    passed = 0
    for _ in range(100):
        try:
            sampler(None, "info", {"event": "x"})
            passed += 1
        except structlog.DropEvent:
            pass
    assert passed == logs.EVENTS_PER_PERIOD
    now += logs.PERIOD_S
    assert sampler(None, "info", {"event": "x"})["suppressed"] == 100 - passed
    assert "suppressed" not in sampler(None, "info", {"event": "x"})


def test_what_was_suppressed_is_told_although_it_never_comes_again() -> None:
    """With the next line of anything, after its period; and once."""
    now = 0.0
    sampler = logs.Sampler(monotonic=lambda: now)
    for _ in range(100):
        with contextlib.suppress(structlog.DropEvent):
            sampler(None, "info", {"event": "x"})
    assert "left_out" not in sampler(None, "info", {"event": "y"}), "its period goes on"
    now += logs.PERIOD_S
    told = sampler(None, "info", {"event": "y"})
    assert told["left_out"] == {"x": 100 - logs.EVENTS_PER_PERIOD}
    assert "left_out" not in sampler(None, "info", {"event": "y"})


def test_what_is_left_at_the_end_of_the_process_is_told(stream: io.StringIO) -> None:
    for _ in range(30):
        logs.get("feed").info("x")
    logs._LAST()
    logs._LAST()
    assert lines(stream)[-1]["counts"] == {"x": 30 - logs.EVENTS_PER_PERIOD}
    assert len(lines(stream)) == logs.EVENTS_PER_PERIOD + 1


def test_every_line_says_which_process_and_whose(stream: io.StringIO) -> None:
    logs.get("feed").info("connected")
    logging.getLogger("asyncio").warning("slow")
    for line in lines(stream):
        assert (line["process"], line["gatherer"]) == (logs.PROCESS, "g1")
    assert len(logs.PROCESS) == 8


def test_a_warning_says_what_to_do(stream: io.StringIO) -> None:
    """From the table, by its event; a line that says it itself keeps its own words."""
    logs.get("pipeline").error("invariant broken", invariant="I1")
    logs.get("pipeline").error("invariant broken", invariant="I1", do="sleep")
    logs.get("pipeline").info("invariant broken")
    first, second, third = lines(stream)
    assert first["do"] == ADVICE["invariant broken"]
    assert second["do"] == "sleep"
    assert "do" not in third


def test_a_dependency_cannot_flood_either(stream: io.StringIO) -> None:
    for n in range(1_000):
        logging.getLogger("asyncio").error("task %d failed", n)
    assert len(lines(stream)) == logs.EVENTS_PER_PERIOD


def test_the_memory_for_events_is_bounded() -> None:
    sampler = logs.Sampler(monotonic=lambda: 0.0)
    for number in range(logs.NAMES_MAX * 2 + 5):
        sampler(None, "info", {"event": f"e{number}"})
    assert len(sampler._seen) <= logs.NAMES_MAX


def test_warnings_of_dependencies_come_in_the_same_form(stream: io.StringIO) -> None:
    logging.getLogger("websockets.client").warning("odd %s", "frame")
    logging.getLogger("websockets.client").info("not wanted")
    try:
        int("inside")
    except ValueError:
        logging.getLogger("asyncio").exception("task failed")
    first, second = lines(stream)
    assert (first["logger"], first["event"], first["level"]) == (
        "websockets.client",
        "odd frame",
        "warning",
    )
    assert "ValueError: invalid literal" in second["exception"]


def test_a_terminal_gets_readable_text() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    try:
        logs.setup("g1", stream=out)
        logs.get("feed").info("connected")
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()
    assert "connected" in out.getvalue()
    assert not out.getvalue().startswith("{")
