"""Every exception of Kalshi Tape's pure core.

    TapeError
    ├── WireError            a frame or REST body is not what the exchange documents
    │   ├── MalformedFrame   not JSON, or not an object with a type
    │   ├── MissingField     a required field is absent
    │   └── OffScale         a price, size or time that has no exact integer form, or out of range
    ├── SegmentError         bytes of a spool segment are foreign or torn where they must not be
    ├── CaptureFormatError   a recorded capture is of an unknown format
    ├── ConfigError          settings are wrong; all faults in one message
    ├── StorageError         a database or disk refused; retried by the caller
    ├── LakeError            an object or manifest of the lake is absent, altered or inconsistent
    └── IncompleteTape       a read over an interval that coverage does not call complete

Messages are lower case without a full stop; a hint follows on its own line as "hint: ...".
`assert` is for our own bugs only; data from outside never meets one.
"""

from __future__ import annotations


class TapeError(Exception):
    """Base of all expected failures. `reason` is a short, stable, countable name (metric label)."""

    reason: str = "error"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message}\nhint: {hint}")
        self.hint = hint


class WireError(TapeError):
    """A message is not what the exchange documents. The raw frame is kept by the caller."""

    reason = "wire"


class MalformedFrame(WireError):
    """Not JSON, or not an object with a `type`."""

    reason = "malformed"


class MissingField(WireError):
    """A required field is absent. An absent value is never read as 0."""

    reason = "missing_field"


class OffScale(WireError):
    """A price, size or time without an exact integer form, or outside its range."""

    reason = "off_scale"


class SegmentError(TapeError):
    """A spool segment is foreign, or torn where it must be whole."""

    reason = "segment"


class CaptureFormatError(TapeError):
    """A recorded capture file is of an unknown format."""

    reason = "capture_format"


class ConfigError(TapeError):
    """Settings are wrong. Every fault is in the one message."""

    reason = "config"


class StorageError(TapeError):
    """A database or a disk refused. The caller retries; nothing is lost meanwhile."""

    reason = "storage"


class LakeError(TapeError):
    """An object or manifest of the lake is absent, altered or inconsistent."""

    reason = "lake"


class IncompleteTape(TapeError):
    """A read crosses an interval that coverage does not call complete.

    `intervals` holds (market, from_us, to_us, status, reason) for each such interval.
    """

    reason = "incomplete"

    def __init__(
        self,
        message: str,
        intervals: tuple[tuple[str, int, int, str, str], ...] = (),
        *,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.intervals = intervals
