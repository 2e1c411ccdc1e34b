"""Asks the exchange now and then whether it is open: a quiet feed in a pause is no fault of ours.

Purpose: /exchange/status every STATUS_S and /exchange/schedule every SCHEDULE_S; a change goes to
the spool as a note, so that whoever asks later why a stretch was quiet finds the answer there.
Invariants: an answer that fails is told and asked for again; nothing waits for it.
Does not do: reading bodies (marketdata.exchange_status), stopping or starting anything.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import orjson

from gatherer.intake import LiveIntake
from gatherer.rest import RestClient, RestError
from marketdata.errors import WireError
from marketdata.exchange_status import (
    ExchangeStatus,
    maintenance_of,
    maintenance_reason,
    status_of,
)
from runtime import logs
from runtime.clock import Clock

STATUS_S: Final = 30
SCHEDULE_S: Final = 3600
STATUS_CODES: Final = frozenset({500, 503, 504})  # answers that have the body of a 200

log = logs.get("exchange")


class ExchangeWatch:
    """See the module's text. `reason`: what is not as usual at the exchange, by its own word."""

    def __init__(self, rest: RestClient, intake: LiveIntake, clock: Clock) -> None:
        self._rest = rest
        self._intake = intake
        self._clock = clock
        self._windows: tuple[tuple[int, int], ...] = ()
        self._schedule_due_ns = 0
        self.status: ExchangeStatus | None = None
        self.problem = ""

    @property
    def reason(self) -> str:
        """A pause or a maintenance window; empty in normal trade or before the first answer."""
        told = self.status.reason if self.status is not None else ""
        announced = maintenance_reason(self._windows, self._clock.wall_ns())
        return "; ".join(part for part in (told, announced) if part)

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            try:
                await self.once()
                self.problem = ""
            except (RestError, WireError) as error:
                if not self.problem:
                    log.warning("the exchange's status is not known", error=str(error))
                self.problem = str(error)
            await asyncio.sleep(STATUS_S)

    async def once(self) -> None:
        """One question about the status, and now and then one about the schedule."""
        found = status_of(await self._status_body())
        if found != self.status:
            body = {
                "exchange_active": found.exchange_active,
                "trading_active": found.trading_active,
                "resume": found.resume,
                "paused_shards": list(found.paused_shards),
            }
            self._intake.control(
                {"k": "note", "note": "exchange_status", "detail": body}, self._clock.wall_ns()
            )
            log.info("exchange status", **body)
        self.status = found
        if self._clock.monotonic_ns() >= self._schedule_due_ns:
            self._schedule_due_ns = self._clock.monotonic_ns() + SCHEDULE_S * 1_000_000_000
            await self._look_at_schedule()

    async def _look_at_schedule(self) -> None:
        """The announced windows. Without them the status still tells a pause when it is there."""
        try:
            self._windows = maintenance_of(await self._rest.get("/exchange/schedule", tries=1))
        except (RestError, WireError) as error:
            log.warning("the exchange's schedule is not known", error=str(error))

    async def _status_body(self) -> dict[str, Any]:
        """The status, also out of an answer that says that the exchange is down."""
        try:
            return await self._rest.get("/exchange/status", tries=1)
        except RestError as error:
            if error.status not in STATUS_CODES or not error.body:
                raise
            try:
                body = orjson.loads(error.body)
            except orjson.JSONDecodeError:
                raise error from None
            if not isinstance(body, dict) or "exchange_active" not in body:
                raise
            return body
