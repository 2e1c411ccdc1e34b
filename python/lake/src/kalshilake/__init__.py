"""The lake: Kalshi Tape's archive, both directions. Start with `open_lake`."""

from kalshilake.bookview import BookView
from kalshilake.coverage import CoverageInterval, CoverageMap
from kalshilake.read import Lake, open_lake

__all__ = ["BookView", "CoverageInterval", "CoverageMap", "Lake", "open_lake"]
