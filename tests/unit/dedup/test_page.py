"""The page's files: all of them are served, and none is there in vain."""

from __future__ import annotations

from importlib import resources

from dedup.page.serving import FILES


def test_every_file_is_served_under_one_name() -> None:
    folder = resources.files("dedup.page").joinpath("assets")
    there = {entry.name for entry in folder.iterdir()}
    assert there == {name for name, _ in FILES.values()}
    assert len(FILES) == len(there)
