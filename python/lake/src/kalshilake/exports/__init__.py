"""The tape in other programs' formats: CSV, and the event array of hftbacktest."""
