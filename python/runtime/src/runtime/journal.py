"""The journal of a host to CloudWatch Logs: batches in order, each kept until it is there.

Purpose: follow `journalctl` for the given units and put what it tells into one log stream.
What holds:
- The journal is the buffer: its cursor is kept on disk and moves only after a batch was taken, so
  an outage of any length loses no more than the journal itself lets go of (its size limit).
- A batch that the service refuses for its content is counted and passed over, with its reason in
  our own log: one impossible line must not hold up all others for ever.
- Events that the service takes and then leaves out (older than 14 days, or than the group keeps)
  are counted in `rejected` and told.
- Bytes are bounded: BYTES_PER_S over time, after a burst of BURST_BYTES. What is beyond that waits
  in the journal and is not dropped; `shipped_bytes` counts what was paid for.
- Actions used: CreateLogStream and PutLogEvents. The log group is made with the infrastructure.
Does not do: choosing what is logged (the services do), metrics (runtime.cloudwatch).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from runtime.logs import get
from runtime.postgres import backoff_s

EVENTS_MAX: Final = 1_000
BATCH_BYTES_MAX: Final = 900_000  # the service takes 1,048,576 with 26 for each event
EVENT_BYTES: Final = 26
EVENT_BYTES_MAX: Final = 200_000  # it takes 256 KB; a longer line is cut and says so
SPAN_MS_MAX: Final = 23 * 3_600_000  # it takes a day
LINGER_S: Final = 5.0
RETRY_CAP_S: Final = 60.0
LINE_BYTES_MAX: Final = 4 * 1024 * 1024  # of journalctl's JSON
FIRST_SINCE: Final = "-1h"
BYTES_PER_S: Final = 3_000
"""Of one host: 7.8 GB a month, so four hosts cost at most 16 dollars at 0.50 a GB."""
BURST_BYTES: Final = 64 * 1024 * 1024
MS_PER_S: Final = 1_000
NS_PER_S: Final = 1_000_000_000
RUNBOOK: Final = "docs/runbook.md, CloudWatch is away"
CONTENT_FAULTS: Final = frozenset({"InvalidParameterException", "DataAlreadyAcceptedException"})

log = get("journal")


@dataclass(slots=True)
class Entry:
    """One line of the journal."""

    cursor: str
    at_ms: int
    text: str

    @property
    def size(self) -> int:
        """Bytes that count towards a batch."""
        return len(self.text.encode()) + EVENT_BYTES


@dataclass(slots=True)
class _Batch:
    entries: list[Entry] = field(default_factory=list)
    size: int = 0

    def takes(self, entry: Entry) -> bool:
        """Whether it fits in beside the others."""
        if not self.entries:
            return True
        times = [self.entries[0].at_ms, self.entries[-1].at_ms, entry.at_ms]
        return (
            len(self.entries) < EVENTS_MAX
            and self.size + entry.size <= BATCH_BYTES_MAX
            and max(times) - min(times) <= SPAN_MS_MAX
        )

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.size += entry.size


def entry_of(line: bytes) -> Entry | None:
    """A line of `journalctl --output=json`. None for what has no message. Raises ValueError."""
    fields: dict[str, Any] = json.loads(line)
    message = fields.get("MESSAGE")
    if isinstance(message, list):  # bytes that are no text
        message = bytes(message).decode("utf-8", "replace")
    if not message:
        return None
    raw = str(message).encode()
    if len(raw) > EVENT_BYTES_MAX:
        cut = raw[:EVENT_BYTES_MAX].decode("utf-8", "ignore")
        message = f"{cut} [cut from {len(raw)} bytes]"
    return Entry(str(fields["__CURSOR"]), int(fields["__REALTIME_TIMESTAMP"]) // 1_000, message)


class Allowance:
    """Bytes that may be sent now: BYTES_PER_S gathered up to BURST_BYTES."""

    def __init__(
        self,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        rate: int = BYTES_PER_S,
        burst: int = BURST_BYTES,
    ) -> None:
        self._monotonic_ns = monotonic_ns
        self._rate, self._burst = rate, burst
        self._left, self._at_ns = burst, monotonic_ns()

    def wait_ms(self, size: int) -> int:
        """Until so many bytes may be sent; 0: now. More than the burst counts as the burst."""
        self._gather()
        return max(0, -((self._left - min(size, self._burst)) * MS_PER_S // self._rate))

    def spend(self, size: int) -> None:
        """They are sent."""
        self._gather()
        self._left -= size

    def _gather(self) -> None:
        gained = (self._monotonic_ns() - self._at_ns) * self._rate // NS_PER_S
        self._at_ns += gained * NS_PER_S // self._rate
        self._left = min(self._burst, self._left + gained)


class JournalShipper:
    """One host's journal to one stream.

    `client`: boto3's of CloudWatch Logs. `errors`: what it raises when the service refuses or is
    away (given, so that a closure without boto3 can import this module).
    """

    def __init__(
        self,
        client: Any,
        group: str,
        stream: str,
        units: Sequence[str],
        state_dir: Path,
        progress: Callable[[], None],
        *,
        errors: tuple[type[Exception], ...],
        command: Sequence[str] = ("journalctl",),
        allowance: Allowance | None = None,
    ) -> None:
        self._client = client
        self._group = group
        self._stream = stream
        self._units = tuple(units)
        self._cursor_file = state_dir / "journal.cursor"
        self._progress = progress
        self._command = tuple(command)
        self._errors = errors
        self._made = False
        self._allowance = allowance or Allowance()
        self.shipped = 0
        self.shipped_bytes = 0
        self.rejected = 0
        self.refused = 0
        self.problem = ""

    async def run(self) -> None:
        """Follow until cancelled; journalctl is started again when it ends."""
        attempt = 0
        while True:
            before = self.shipped
            await self._follow()
            attempt = 0 if self.shipped > before else attempt + 1
            log.warning("journalctl ended", problem=self.problem)
            await self._wait(backoff_s(attempt, cap_s=RETRY_CAP_S))

    async def _follow(self) -> None:
        process = await asyncio.create_subprocess_exec(
            *self._arguments(), stdout=asyncio.subprocess.PIPE, limit=LINE_BYTES_MAX
        )
        assert process.stdout is not None
        try:
            left: Entry | None = None
            while True:
                batch, left, is_over = await self._gather(process.stdout, left)
                if batch.entries:
                    await self._put(batch)
                if is_over and left is None:
                    return
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _arguments(self) -> list[str]:
        kept = self._cursor_file.read_text().strip() if self._cursor_file.exists() else ""
        start = f"--after-cursor={kept}" if kept else f"--since={FIRST_SINCE}"
        units = [f"--unit={unit}" for unit in self._units]
        return [*self._command, "--follow", "--output=json", "--lines=all", start, *units]

    async def _gather(
        self, lines: asyncio.StreamReader, left: Entry | None
    ) -> tuple[_Batch, Entry | None, bool]:
        """(a batch, the entry that did not fit in, whether journalctl ended)."""
        batch = _Batch()
        if left is not None:
            batch.add(left)
        try:
            async with asyncio.timeout(LINGER_S):
                while line := await lines.readline():
                    try:
                        entry = entry_of(line)
                    except (ValueError, KeyError, TypeError) as error:
                        self.problem = f"a line of journalctl was not understood: {error}"
                        continue
                    if entry is None:
                        continue
                    if not batch.takes(entry):
                        return batch, entry, False
                    batch.add(entry)
        except TimeoutError:
            self._progress()
            return batch, None, False
        except ValueError as error:  # a line beyond the limit: asyncio drops it
            self.problem = f"a line of journalctl is too long: {error}"
            return batch, None, False
        return batch, None, True

    async def _put(self, batch: _Batch) -> None:
        """Until the service has taken or refused the batch; then the cursor moves."""
        attempt = 0
        is_taken = False
        while wait_ms := self._allowance.wait_ms(batch.size):
            await self._wait(min(wait_ms / MS_PER_S, RETRY_CAP_S))
        while not is_taken:
            try:
                await asyncio.to_thread(self._send, batch)
                is_taken = True
            except self._errors as error:
                if _code(error) in CONTENT_FAULTS:
                    log.exception("log events refused", events=len(batch.entries), do=RUNBOOK)
                    break
                self._made = False
                self.problem = str(error)
                await self._wait(backoff_s(attempt, cap_s=RETRY_CAP_S))
                attempt += 1
        self._keep(batch.entries[-1].cursor)
        if is_taken:
            self._allowance.spend(batch.size)
            self.shipped_bytes += batch.size
            self.shipped += len(batch.entries)
            self.problem = ""
        else:
            self.refused += len(batch.entries)
        self._progress()

    def _send(self, batch: _Batch) -> None:
        if not self._made:
            try:
                self._client.create_log_stream(logGroupName=self._group, logStreamName=self._stream)
            except self._errors as error:
                if _code(error) != "ResourceAlreadyExistsException":
                    raise
            self._made = True
        events = [{"timestamp": e.at_ms, "message": e.text} for e in batch.entries]
        events.sort(key=lambda e: int(str(e["timestamp"])))  # a clock that was set back
        answer = self._client.put_log_events(
            logGroupName=self._group, logStreamName=self._stream, logEvents=events
        )
        left_out = n_left_out(answer or {}, len(events))
        if left_out:
            self.rejected += left_out
            log.error("log events left out", events=left_out, answer=answer, do=RUNBOOK)

    def _keep(self, cursor: str) -> None:
        beside = self._cursor_file.with_suffix(".new")
        beside.write_text(cursor)
        beside.replace(self._cursor_file)

    async def _wait(self, seconds: float) -> None:
        """Known trouble that is tried again is progress too."""
        self._progress()
        await asyncio.sleep(seconds)


def n_left_out(answer: Mapping[str, Any], n: int) -> int:
    """How many of `n` events in order of time an answer to PutLogEvents says were not stored."""
    told = answer.get("rejectedLogEventsInfo") or {}
    old = max(
        int(told.get("tooOldLogEventEndIndex", 0)), int(told.get("expiredLogEventEndIndex", 0))
    )
    return old + n - int(told.get("tooNewLogEventStartIndex", n))


def _code(error: Exception) -> str:
    """The service's own name of an error, "" where it gave none."""
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
