"""The tape in other programs' formats: CSV, and the event array of hftbacktest."""

from kalshilake.exports.csv_text import export_csv
from kalshilake.exports.hftbacktest import export_hftbacktest

__all__ = ["export_csv", "export_hftbacktest"]
