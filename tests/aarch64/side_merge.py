"""One side: the merge of gatherer databases into an empty production database.

`{"hot": [DSN, ...], "production": DSN}`: the deduplicator's own readers, flow, arbiter, invariants
and publisher, as tests.bench.merge wires them; answers what they counted.
"""

from __future__ import annotations

from typing import Any

import uvloop

from runtime import logs
from tests.aarch64.answering import answer_all
from tests.bench.merge import merge


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """One merge."""
    done = uvloop.run(merge(asked["hot"], asked["production"]))
    return {"seconds": done.seconds, "rows_in": done.rows_in, "counts": done.counts}


if __name__ == "__main__":
    logs.setup("aarch64", "error")
    answer_all(answer)
