"""A small lake for the commands that read one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tape.main import main
from tests.databases import postgres_server
from tests.lake_world import World, make_world, write_world

__all__ = ["postgres_server"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def world() -> World:
    return make_world(11, markets=3, hours=2, events=60)


@pytest.fixture(scope="session")
def lake(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli") / "lake"
    write_world(root, world)
    return root


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process: (exit code, standard output, standard error)."""

    def once(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
        sys.stdout.flush()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return once
