"""The status page over HTTP: its files, its numbers as JSON, and the stream of updates.

Purpose: what the routes answer, on the health port beside /health and /status. Every number of the
page is one of /api/...; what it looks like is the browser's work (assets/).

What holds:
- Read only: GET and HEAD; a parameter that is not known, or not of its form, is 400 and asks
  nobody anything. Nothing but our own files and numbers: the policy of the page allows the browser
  no other source, no inline script or style, and no frame around it.
- One overview a second however many look; none while nobody does. A reader of the stream that does
  not take what it is sent within SEND_S is cut off; STREAMS_MAX readers, others get 503.
- Answers are described by assets/openapi.json, which a test holds against them.

Does not do: limits of connections and requests (runtime.door), numbers (standing, calendar, depth).
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from importlib import resources
from typing import Any, Final

from aiohttp import web

from dedup.page import calendar, depth, standing
from dedup.page.asked import Production, UnansweredError
from dedup.publication import HOUR_US
from kalshilake.store import Store, open_store
from runtime.config import DedupSettings
from runtime.door import stay
from runtime.health import Health

STREAMS_MAX: Final = 20
UPDATE_S: Final = 1.0
SEND_S: Final = 5.0
STREAM_S: Final = 3_600.0
"""A stream ends after so long; the browser opens it again by itself."""
HOURS_JUDGED: Final = 24
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
FILES: Final[Mapping[str, tuple[str, str]]] = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/charts.js": ("charts.js", "text/javascript"),
    "/words.js": ("words.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/api/openapi.json": ("openapi.json", "application/json"),
}
# Parameters: name -> the form of its value.
MARKET: Final = r"[A-Za-z0-9._-]{1,100}"
SERIES: Final = r"[A-Za-z0-9._]{1,100}"
PART: Final = r"[A-Za-z0-9._-]{0,100}"
DAY: Final = r"\d{4}-\d{2}-\d{2}"
HOUR: Final = r"\d{4}-\d{2}-\d{2}T\d{2}"
CHANNEL: Final = "|".join(calendar.CHANNELS)
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_US: Final = dt.timedelta(microseconds=1)

Report = Callable[[], Mapping[str, Any]]
Params = dict[str, str]
Answer = Callable[[Params], Awaitable[dict[str, Any]]]


class RefusedError(Exception):
    """A request that cannot be answered as it is; the text says why."""


class NoSuchTimeError(Exception):
    """A text of the right form that names no day or hour."""


def parameters(request: web.Request, forms: Mapping[str, str], optional: frozenset[str]) -> Params:
    """The parameters of a request, each once and of its form.

    Raises:
        RefusedError: one is unknown, missing, repeated or of another form.
    """
    found: Params = {}
    for name, value in request.query.items():
        if name not in forms:
            raise RefusedError(
                f"parameter {name[:40]!r} is unknown; known: {', '.join(forms) or 'none'}"
            )
        if name in found:
            raise RefusedError(f"parameter {name!r} is given twice")
        if re.fullmatch(forms[name], value, re.ASCII) is None:
            raise RefusedError(f"parameter {name!r} must match {forms[name]}")
        found[name] = value
    missing = [name for name in forms if name not in found and name not in optional]
    if missing:
        raise RefusedError(f"parameter {missing[0]!r} is missing")
    return found


def moment_us(text: str) -> int:
    """Microseconds of a day or an hour, UTC. Raises NoSuchTimeError."""
    form = "%Y-%m-%dT%H" if "T" in text else "%Y-%m-%d"
    try:
        at = dt.datetime.strptime(text, form).replace(tzinfo=dt.UTC)
    except ValueError:
        raise NoSuchTimeError(text) from None
    return (at - _EPOCH) // _US


class Page:
    """The page of one service. `status` and `health` are its own; `routes` go to its server."""

    def __init__(
        self,
        health: Health,
        status: Report,
        dsn: str,
        store: Store,
        *,
        lake_uri: str,
        revision: str = "",
    ) -> None:
        self._health = health
        self._status = status
        self._store = store
        self._lake_uri, self._revision = lake_uri, revision
        self.production = Production(dsn)
        self._calendar = calendar.Calendar(store)
        self._known: dict[str, Any] | None = None
        self._state: dict[str, Any] | None = None
        self._streams: set[asyncio.Queue[bytes | None]] = set()
        self._telling: asyncio.Task[None] | None = None
        self._files = {
            path: (resources.files("dedup.page").joinpath("assets", name).read_bytes(), kind)
            for path, (name, kind) in FILES.items()
        }

    @classmethod
    def of(cls, settings: DedupSettings, health: Health, status: Report) -> Page:
        """The page of a deduplicator with these settings."""
        return cls(
            health,
            status,
            settings.production_dsn,
            open_store(settings.lake_uri),
            lake_uri=settings.lake_uri,
            revision=settings.revision,
        )

    @property
    def streams(self) -> int:
        """How many read the stream now."""
        return len(self._streams)

    def routes(self) -> list[web.RouteDef]:
        """Everything the page answers."""
        forms: dict[str, tuple[Answer, dict[str, str], tuple[str, ...]]] = {
            "overview": (self._overview, {}, ()),
            "coverage/days": (self._days, {"channel": CHANNEL}, ("channel",)),
            "coverage/hours": (
                self._hours,
                {"day": DAY, "channel": CHANNEL, "part": PART},
                ("channel", "part"),
            ),
            "coverage/markets": (
                self._markets,
                {"series": SERIES, "hour": HOUR, "channel": CHANNEL},
                ("channel",),
            ),
            "coverage/intervals": (self._intervals, {"market": MARKET, "hour": HOUR}, ()),
            "markets": (self._search, {"part": PART}, ("part",)),
            "book": (self._book, {"market": MARKET}, ()),
            "depth": (self._depth, {"market": MARKET, "minutes": r"[1-9]\d?"}, ("minutes",)),
            "gaps": (self._gaps, {}, ()),
            "interruptions": (self._interruptions, {}, ()),
            "quarantine": (self._quarantine, {}, ()),
            "audits": (self._audits, {}, ()),
            "host": (self._host, {}, ()),
        }
        made = [
            web.get(f"/api/{name}", self._answering(answer, of, frozenset(optional)))
            for name, (answer, of, optional) in forms.items()
        ]
        made.append(web.get("/api/events", self._stream))
        return [*made, *(web.get(path, self._file) for path in self._files)]

    async def close(self) -> None:
        """End the streams, give up the connections."""
        telling, self._telling = self._telling, None
        if telling is not None:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
        for queue in self._streams:
            while not queue.empty():
                queue.get_nowait()
            queue.put_nowait(None)
        await self.production.close()

    # -- answering -------------------------------------------------------------------------------

    def _answering(
        self, answer: Answer, forms: Mapping[str, str], optional: frozenset[str]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answered(request: web.Request) -> web.StreamResponse:
            try:
                body = await answer(parameters(request, forms, optional))
            except RefusedError as error:
                return _json({"error": str(error)}, 400)
            except NoSuchTimeError as error:
                return _json({"error": f"there is no such time: {error}"}, 404)
            except depth.UnknownMarketError as error:
                return _json({"error": f"{error} is not on the tape"}, 404)
            except UnansweredError as error:
                return _json({"error": f"production does not answer: {error}"}, 503)
            return _json(body, 200)

        return answered

    async def _file(self, request: web.Request) -> web.StreamResponse:
        if request.query_string:
            return _json({"error": "a file has no parameters"}, 400)
        body, kind = self._files[request.path]
        charset = None if kind == "image/svg+xml" else "utf-8"
        return web.Response(
            body=body,
            content_type=kind,
            charset=charset,
            headers={"Content-Security-Policy": POLICY},
        )

    async def _look(self) -> dict[str, Any]:
        """Bring the calendar up to date; what is known of it."""

        async def look(conn: Any) -> dict[str, Any]:
            await self._calendar.look(conn)
            return {}

        known: dict[str, Any] = (await self.production.known("hours", look, stands_s=2.0))["known"]
        self._known = known
        return known

    async def told(self) -> dict[str, Any]:
        """The overview, with or without production."""
        with contextlib.suppress(UnansweredError):
            await self._look()
        gaps: dict[str, Any] = {}
        with contextlib.suppress(UnansweredError):
            self._state = await self.production.known("state", standing.state_told, stands_s=1.0)
            gaps = await self._gaps({})
        return standing.overview(
            self._health.report(),
            self._status(),
            self._state,
            gaps.get("gaps", []),
            self._calendar.newest("orderbook", HOURS_JUDGED),
            self._known,
            time.time_ns() // 1_000_000,
        ) | {"streams": self.streams}

    async def _overview(self, _: Params) -> dict[str, Any]:
        return await self.told()

    async def _days(self, given: Params) -> dict[str, Any]:
        known = await self._look()
        return {**self._calendar.days(given.get("channel", "orderbook")), "known": known}

    async def _hours(self, given: Params) -> dict[str, Any]:
        day_us = moment_us(given["day"])
        known = await self._look()
        channel = given.get("channel", "orderbook")
        return {**self._calendar.hours(channel, day_us, given.get("part", "")), "known": known}

    async def _markets(self, given: Params) -> dict[str, Any]:
        hour_us, series = moment_us(given["hour"]), given["series"]
        channel = given.get("channel", "orderbook")

        async def make(conn: Any) -> dict[str, Any]:
            rows, to_us = await calendar.rows_of(conn, self._store, hour_us, series=series)
            told = calendar.markets_told(rows, channel)
            return {"series": series, "from_us": hour_us, "to_us": to_us, **told}

        name = f"markets {series} {hour_us} {channel}"
        return await self.production.known(name, make, stands_s=2.0)

    async def _intervals(self, given: Params) -> dict[str, Any]:
        hour_us, market = moment_us(given["hour"]), given["market"]

        async def make(conn: Any) -> dict[str, Any]:
            await depth.market_id_of(conn, market)
            rows, to_us = await calendar.rows_of(conn, self._store, hour_us, market=market)
            return {
                "market": market,
                "from_us": hour_us,
                "to_us": max(to_us, hour_us),
                "hour_us": HOUR_US,
                "intervals": rows[: calendar.INTERVALS_SHOWN],
                "left_out": max(0, len(rows) - calendar.INTERVALS_SHOWN),
            }

        return await self.production.known(f"intervals {market} {hour_us}", make, stands_s=2.0)

    async def _search(self, given: Params) -> dict[str, Any]:
        part = given.get("part", "")

        async def make(conn: Any) -> dict[str, Any]:
            return await depth.markets_found(conn, part)

        return await self.production.known(f"search {part}", make, stands_s=5.0)

    async def _book(self, given: Params) -> dict[str, Any]:
        async def make(conn: Any) -> dict[str, Any]:
            return await depth.book_told(conn, given["market"])

        return await self.production.known(f"book {given['market']}", make, stands_s=0.5)

    async def _depth(self, given: Params) -> dict[str, Any]:
        minutes = int(given.get("minutes", "10"))
        if minutes > depth.MINUTES_MAX:
            raise RefusedError(f"at most {depth.MINUTES_MAX} minutes")

        async def make(conn: Any) -> dict[str, Any]:
            return await depth.depth_told(conn, given["market"], minutes)

        name = f"depth {given['market']} {minutes}"
        return await self.production.known(name, make, stands_s=2.0)

    async def _gaps(self, _: Params) -> dict[str, Any]:
        return await self.production.known("gaps", standing.gaps_told, stands_s=1.0)

    async def _interruptions(self, _: Params) -> dict[str, Any]:
        seen = self._status().get("seen") or {}
        return {
            "interrupted": seen.get("interrupted", 0),
            "interruptions": seen.get("interruptions", []),
        }

    async def _quarantine(self, _: Params) -> dict[str, Any]:
        return await self.production.known("quarantine", standing.quarantine_told, stands_s=2.0)

    async def _audits(self, _: Params) -> dict[str, Any]:
        return await self.production.known("audits", standing.audits_told, stands_s=2.0)

    async def _host(self, _: Params) -> dict[str, Any]:
        told = standing.host_told(self._lake_uri, self._revision)
        with contextlib.suppress(UnansweredError):
            return told | await self.production.known("bytes", standing.bytes_told, stands_s=30.0)
        return told

    # -- the stream ------------------------------------------------------------------------------

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        if request.query_string:
            return _json({"error": "the stream has no parameters"}, 400)
        if len(self._streams) >= STREAMS_MAX:
            return _json({"error": f"{STREAMS_MAX} readers already; try again later"}, 503)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=2)
        self._streams.add(queue)
        try:
            stay(request)
            await response.prepare(request)
            if request.method == "HEAD":
                return response
            if self._telling is None or self._telling.done():
                self._telling = asyncio.create_task(self._tell())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STREAM_S):
                    while (event := await queue.get()) is not None:
                        async with asyncio.timeout(SEND_S):
                            await response.write(event)
        except (ConnectionError, TimeoutError):
            pass
        finally:
            self._streams.discard(queue)
        return response

    async def _tell(self) -> None:
        """One overview for all, again and again while somebody reads."""
        while self._streams:
            began_s = time.monotonic()
            body = json.dumps(await self.told(), separators=(",", ":"), default=str)
            event = f"event: overview\ndata: {body}\n\n".encode()
            for queue in list(self._streams):
                with contextlib.suppress(asyncio.QueueFull):  # a slow one misses it
                    queue.put_nowait(event)
            await asyncio.sleep(max(0.0, UPDATE_S - (time.monotonic() - began_s)))


def _json(body: Mapping[str, Any], status: int) -> web.Response:
    text = json.dumps(body, default=str, separators=(",", ":"))
    return web.Response(text=text + "\n", status=status, content_type="application/json")
