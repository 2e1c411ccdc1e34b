"""What a service says about itself: /health and /status (8080 by default), /metrics (9090).

What holds:
- Read only: GET and HEAD, no request body, no parameters, nothing a page could embed.
- One request a connection, within the limits of runtime.door: whatever is done to the ports, they
  answer, and the service does not notice.
- /health is 200 while every component is ok or degraded, else 503, always with the reasons in plain
  words. `degraded` means: works, late or with less; `failing` means: does not do its work.

Does not do: decide what a component's trouble is; the component says it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Literal, Self

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from marketdata.errors import StorageError
from runtime.door import BACKLOG, Door
from runtime.metrics import Metrics

State = Literal["starting", "ok", "degraded", "failing", "stopping"]
STATES: Final[tuple[State, ...]] = ("ok", "degraded", "starting", "stopping", "failing")
COMPONENTS_MAX: Final = 100
REASON_CHARS_MAX: Final = 500

_POLICY: Final = "Content-Security-Policy"
HEADERS: Final[Mapping[str, str]] = {
    "Cache-Control": "no-store",
    _POLICY: "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Server": "kalshi-tape",
}


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether a record of aiohttp's tells of us, not of a request that was none."""
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or not issubclass(kind, HttpProcessingError)


# Whoever sends nonsense must not fill the journal with it.
_LOG: Final = logging.getLogger("runtime.health")
_LOG.addFilter(_is_ours)


@dataclass(frozen=True, slots=True)
class Component:
    """One part's word about itself."""

    state: State
    reason: str


class Health:
    """The states of a service's components. The worst one is the service's."""

    def __init__(self, service: str, *components: str) -> None:
        self.service = service
        self._components: dict[str, Component] = {}
        for name in components:
            self.set(name, "starting")

    def set(self, component: str, state: State, reason: str = "") -> None:
        """Say a component's state; every state but ok should have a reason in plain words."""
        assert state in STATES, state
        if component not in self._components:
            assert len(self._components) < COMPONENTS_MAX, "components have fixed names"
        self._components[component] = Component(state, reason[:REASON_CHARS_MAX])

    def get(self, component: str) -> Component | None:
        """What a component said last."""
        return self._components.get(component)

    @property
    def state(self) -> State:
        """The worst state of all components; starting when there are none."""
        states = [component.state for component in self._components.values()]
        return max(states, key=STATES.index) if states else "starting"

    def report(self) -> dict[str, Any]:
        """The JSON body of /health."""
        reasons = [
            f"{name}: {component.reason or component.state}"
            for name, component in self._components.items()
            if component.state != "ok"
        ]
        return {
            "service": self.service,
            "state": self.state,
            "reasons": reasons,
            "components": {
                name: {"state": component.state, "reason": component.reason}
                for name, component in self._components.items()
            },
        }


Report = Callable[[], Mapping[str, Any]]
Lines = Callable[[], Iterable[Mapping[str, Any]]]
_Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HealthServer:
    """Both HTTP servers of a service, as an async context manager.

    `detail` adds to /health (`detail` key), `status` is the body of /status, `exposition` gives
    metrics of other processes to stand behind those of this one, `lines` are answers of many rows
    by path: one JSON object a line, made one by one, so that nothing else waits for long; `routes`
    are more of the health port's, with headers of their own where they set them. Port 0: the system
    chooses; `health_port` and `metrics_port` tell which.
    """

    def __init__(
        self,
        health: Health,
        metrics: Metrics,
        *,
        bind: str = "127.0.0.1",
        health_port: int = 0,
        metrics_port: int = 0,
        detail: Report | None = None,
        status: Report | None = None,
        exposition: Callable[[], Awaitable[bytes]] | None = None,
        lines: Mapping[str, Lines] | None = None,
        routes: Sequence[web.RouteDef] = (),
    ) -> None:
        self._health, self._metrics = health, metrics
        self._bind = bind
        self.health_port, self.metrics_port = health_port, metrics_port
        self._detail, self._status, self._exposition = detail, status, exposition
        self._lines = dict(lines or {})
        self._routes = routes
        self.doors: list[Door] = []  # of the health port, of the metrics port
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            self.health_port = await self._serve(
                self.health_port,
                {
                    "/health": self._answer_health,
                    "/status": self._answer_status,
                    **dict.fromkeys(self._lines, self._answer_lines),
                },
                self._routes,
            )
            self.metrics_port = await self._serve(
                self.metrics_port, {"/metrics": self._answer_metrics}
            )
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def _serve(
        self, port: int, routes: Mapping[str, _Answer], more: Sequence[web.RouteDef] = ()
    ) -> int:
        app = web.Application(client_max_size=1024)
        app.on_response_prepare.append(_safe_headers)
        for path, answer in routes.items():
            app.router.add_get(path, answer)
        app.router.add_routes(more)
        runner = web.AppRunner(
            app,
            access_log=None,
            logger=_LOG,
            handle_signals=False,
            shutdown_timeout=1.0,
            lingering_time=0.0,
        )
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        assert runner.server is not None
        door = Door(runner.server)
        self.doors.append(door)
        try:
            loop = asyncio.get_running_loop()
            server = await loop.create_server(door, self._bind, port, backlog=BACKLOG)
        except OSError as error:
            raise StorageError(
                f"cannot listen on {self._bind}:{port}: {error.strerror or error}",
                hint="choose another port, or 0 to let the system choose",
            ) from error
        self._stack.callback(server.close)
        return int(server.sockets[0].getsockname()[1])

    async def _answer_health(self, _request: web.Request) -> web.StreamResponse:
        body = self._health.report()
        if self._detail is not None:
            body["detail"] = dict(self._detail())
        return _json(body, 200 if body["state"] in ("ok", "degraded") else 503)

    async def _answer_status(self, _request: web.Request) -> web.StreamResponse:
        return _json(dict(self._status()) if self._status is not None else {}, 200)

    async def _answer_lines(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        if request.method != "HEAD":
            for row in self._lines[request.path]():
                await response.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
                await asyncio.sleep(0)
        await response.write_eof()
        return response

    async def _answer_metrics(self, _request: web.Request) -> web.StreamResponse:
        for name, component in self._health.report()["components"].items():
            self._metrics.gauge("healthy", component=name).set(component["state"] == "ok")
        own = self._metrics.exposition()
        more = await self._exposition() if self._exposition is not None else b""
        return web.Response(
            body=own + more,
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )


async def _safe_headers(_request: web.Request, response: web.StreamResponse) -> None:
    own = response.headers.get(_POLICY)
    response.headers.update(HEADERS)
    if own is not None:
        response.headers[_POLICY] = own
    response.headers["Connection"] = "close"  # the head is made before this: said as well as done
    response.force_close()


def _json(body: Mapping[str, Any], status: int) -> web.Response:
    text = json.dumps(body, default=str, separators=(",", ":"))
    return web.Response(text=text + "\n", status=status, content_type="application/json")
