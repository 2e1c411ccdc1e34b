"""A real browser on the page: what it logs, what it asks for, what it shows."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
CHROMIUM = "/usr/bin/chromium"
# As root there is no sandbox of its own; nothing but this machine is to be found.
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip


@dataclass(slots=True)
class Watched:
    """A tab and everything that it must not do."""

    tab: Any
    base: str
    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    async def text(self, selector: str) -> str:
        """What an element shows."""
        return str(await self.tab.inner_text(selector))

    async def figure(self, name: str, within: str = "#figures") -> str:
        """The number that stands under a name."""
        return await self.text(f'{within} dd[data-name="{name}"] > span')

    async def rows(self, table: str) -> list[list[str]]:
        """The cells of a table's body."""
        found: list[list[str]] = await self.tab.eval_on_selector_all(
            f"{table} tbody tr", "rows => rows.map(r => [...r.cells].map(c => c.innerText.trim()))"
        )
        return found

    async def faults(self) -> list[str]:
        """What axe-core finds against accessibility."""
        await self.tab.evaluate(AXE.read_text())
        found = await self.tab.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{v['id']} ({v['impact']}): {n['target']} {n['failureSummary']}"
            for v in found["violations"]
            for n in v["nodes"]
        ]


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[Any]:
    """A browser."""
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        running = await playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS])
        try:
            yield running
        finally:
            await running.close()


async def opened(
    running: Any, base: str, *, width: int = 1280, height: int = 900, scheme: str = "light"
) -> Watched:
    """The page in a tab of its own, watched from its first byte."""
    context = await running.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    tab = await context.new_page()
    watched = Watched(tab, base)

    def logged(message: Any) -> None:
        if message.type in ("error", "warning"):
            watched.errors.append(f"{message.type}: {message.text}")

    def requested(request: Any) -> None:
        if not request.url.startswith((base, "data:")):
            watched.outside.append(request.url)

    tab.on("console", logged)
    tab.on("pageerror", lambda error: watched.errors.append(str(error)))
    tab.on("request", requested)
    await tab.goto(base, wait_until="domcontentloaded")
    return watched
