"""placeholder until written below"""

from __future__ import annotations

DEFAULT_SECONDS = 60.0


class SyntheticSource:
    def __init__(self, **kw: object) -> None: ...
