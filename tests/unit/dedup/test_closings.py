"""By what windows closed, as production keeps it."""

from __future__ import annotations

from dedup.closings import Closing, by_reason, closings_of, read_closings, write_closings
from dedup.output import WindowOutput
from runtime.postgres import connect


def test_the_closing_of_an_output_is_what_the_gate_said() -> None:
    output = WindowOutput(3, 15, 20, closed_by=("left out", "left out: gatherer 2"))
    assert closings_of([WindowOutput(2, 10, 15), output]) == [
        Closing(2, 15, "watermark", ""),
        Closing(3, 20, "left out", "left out: gatherer 2"),
    ]
    assert not WindowOutput.__dataclass_fields__["closed_by"].compare, "it is no part of the result"


async def test_counts_add_up_and_only_what_was_not_awaited_is_listed(production: str) -> None:
    conn = await connect(production)
    first = [Closing(1, 5, "watermark", ""), Closing(2, 10, "run idle", "run idle: x")]
    second = [Closing(3, 15, "watermark", ""), Closing(4, 20, "watermark", "")]
    for closings in (first, second):
        async with conn.transaction():
            await write_closings(conn, closings, 1)
    assert await read_closings(conn, 1) == {"watermark": 3, "run idle": 1}
    assert await read_closings(conn, 2) == {}
    rows = await conn.fetch("SELECT * FROM window_unwaited")
    assert [tuple(r) for r in rows] == [(1, 2, 10, "run idle", "run idle: x")]
    assert by_reason(second) == {"watermark": 2}
    await conn.close()
