"""REST client of the exchange: signed, paced, patient.

Purpose: GET below /trade-api/v2 with a token bucket, retry of 429 and 5xx with capped full jitter,
paging with a guard against a cursor that does not move.
Source: the exchange answers 429 without Retry-After or rate headers, so the pace is ours to keep:
three gatherers share 20 requests a second on the basic tier, hence 5 for each.
Does not do: reading of what is inside a body beyond paging and errors (discovery does).
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final, Self

import aiohttp
import orjson

from gatherer.auth import Signer
from marketdata.errors import TapeError
from marketdata.rest_bodies import error_body

RETRY_STATUSES: Final = frozenset({429, 500, 502, 503, 504})
ATTEMPTS_MAX: Final = 8
BACKOFF_BASE_S: Final = 0.25
BACKOFF_CAP_S: Final = 10.0
REQUEST_TIMEOUT_S: Final = 20.0
BODY_BYTES_MAX: Final = 64 * 1024 * 1024
PAGES_MAX: Final = 100_000

Params = Mapping[str, str | int | Sequence[str]]


class RestError(TapeError):
    """The exchange refused a request, or did not answer within all attempts."""

    reason = "rest"

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        code: str = "",
        body: bytes = b"",
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.code = code
        self.body = body  # of the refusal


class TokenBucket:
    """Paces requests: `rate_per_s` on average, `burst` at once. Waiting callers go in turn."""

    def __init__(self, rate_per_s: float, burst: int, *, monotonic_ns: Callable[[], int]) -> None:
        if rate_per_s <= 0 or burst < 1:
            raise ValueError("rate is above 0 and burst at least 1")
        self._interval_ns = int(1_000_000_000 / rate_per_s)
        self._burst = burst
        self._monotonic_ns = monotonic_ns
        self._next_free_ns = monotonic_ns() - self._interval_ns * burst

    def reserve_ns(self) -> int:
        """Take one token; returns how long the caller has to wait before using it, in ns."""
        now = self._monotonic_ns()
        self._next_free_ns = max(self._next_free_ns, now - self._interval_ns * self._burst)
        self._next_free_ns += self._interval_ns
        return max(0, self._next_free_ns - now)


def backoff_s(attempt: int, *, base_s: float, cap_s: float, rng: random.Random) -> float:
    """Capped full jitter: uniform in [0, min(cap, base * 2^attempt)], from attempt 0 on."""
    return rng.uniform(0.0, min(cap_s, base_s * (1 << min(attempt, 30))))


class RestClient:
    """One HTTP session to the exchange. Use as an async context manager.

    `url` includes /trade-api/v2. `on_answer` hears the status and the Date header of every answer,
    `on_date` the Date and when (monotonic) it was asked for and its head came.
    All calls are signed: the order book end points need it and the others accept it.
    """

    def __init__(
        self,
        url: str,
        signer: Signer,
        *,
        rate_per_s: float,
        wall_ns: Callable[[], int],
        monotonic_ns: Callable[[], int],
        rng: random.Random | None = None,
        on_answer: Callable[[int, str], None] | None = None,
        on_date: Callable[[str, int, int], None] | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self._signer = signer
        self._wall_ns = wall_ns
        self._bucket = TokenBucket(rate_per_s, max(1, int(rate_per_s)), monotonic_ns=monotonic_ns)
        self._rng = rng or random.Random()  # noqa: S311 (jitter is no secret)
        self._on_answer = on_answer
        self._on_date = on_date
        self._monotonic_ns = monotonic_ns
        self._ssl_context = ssl_context
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        context: ssl.SSLContext | bool = True if self._ssl_context is None else self._ssl_context
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context),
            timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S),
            headers={"Accept": "application/json"},
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(
        self,
        path: str,
        params: Params | None = None,
        *,
        tries: int | None = None,
        on_send: Callable[[], None] | None = None,
    ) -> dict[str, Any]:
        """The JSON object at `path`. RestError after `tries` (ATTEMPTS_MAX), or on a refusal.

        `on_send` is called right before each request, after it had to wait for its turn.
        """
        tries = ATTEMPTS_MAX if tries is None else tries
        last = RestError(f"GET {path}: no attempt was made")
        for attempt in range(tries):
            wait_ns = self._bucket.reserve_ns()
            if wait_ns:
                await asyncio.sleep(wait_ns / 1e9)
            if on_send is not None:
                on_send()
            try:
                return await self._attempt(path, params)
            except RestError as error:
                if error.status not in RETRY_STATUSES:
                    raise
                last = error
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                last = RestError(f"GET {path}: {type(error).__name__}: {error}")
            if attempt + 1 < tries:
                await asyncio.sleep(
                    backoff_s(attempt, base_s=BACKOFF_BASE_S, cap_s=BACKOFF_CAP_S, rng=self._rng)
                )
        raise last

    async def pages(
        self, path: str, key: str, params: Mapping[str, str | int] | None = None
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """Every page of a paged list: the objects under `key`, until the cursor is empty.

        A cursor that was seen before ends in RestError: following it would never finish.
        """
        query: dict[str, str | int | Sequence[str]] = dict(params or {})
        seen: set[str] = set()
        for _ in range(PAGES_MAX):
            body = await self.get(path, query)
            rows = body.get(key)
            if not isinstance(rows, list):
                raise RestError(f"GET {path}: the answer has no list {key!r}")
            yield [row for row in rows if isinstance(row, dict)]
            cursor = body.get("cursor")
            if not isinstance(cursor, str) or not cursor:
                return
            if cursor in seen:
                raise RestError(f"GET {path}: cursor {cursor[:40]!r} came twice, paging stopped")
            seen.add(cursor)
            query["cursor"] = cursor
        raise RestError(f"GET {path}: more than {PAGES_MAX} pages")

    async def _attempt(self, path: str, params: Params | None) -> dict[str, Any]:
        assert self._session is not None, "use RestClient as a context manager"
        url = self._url + path
        headers = self._signer.headers("GET", url, self._wall_ns())
        sent_ns = self._monotonic_ns()
        async with self._session.get(url, params=params, headers=headers) as response:
            if self._on_date is not None:
                date = response.headers.get("Date", "")
                self._on_date(date, sent_ns, self._monotonic_ns())
            body = await response.content.read(BODY_BYTES_MAX + 1)
            while len(body) <= BODY_BYTES_MAX:
                more = await response.content.read(BODY_BYTES_MAX + 1 - len(body))
                if not more:
                    break
                body += more
            if len(body) > BODY_BYTES_MAX:
                raise RestError(f"GET {path}: the answer exceeds {BODY_BYTES_MAX} bytes")
            if self._on_answer is not None:
                self._on_answer(response.status, response.headers.get("Date", ""))
            if response.status != 200:
                refusal = error_body(body)
                told = f"{response.status} {refusal.code} {refusal.message}".rstrip()
                raise RestError(
                    f"GET {path}: status {told}",
                    status=response.status,
                    code=refusal.code,
                    body=bytes(body),
                )
        try:
            decoded: object = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise RestError(f"GET {path}: the answer is not JSON: {error}") from error
        if not isinstance(decoded, dict):
            raise RestError(f"GET {path}: the answer is not a JSON object")
        return decoded
