"""A lake with a known truth, written once; each test that damages it gets a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kalshilake import encode
from tests.lake_world import World, make_world, write_world

SEED = 11


@pytest.fixture(scope="session")
def world() -> World:
    return make_world(SEED, markets=3, hours=2, events=60)


@pytest.fixture(scope="session")
def pristine(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world as a lake in row groups of 16 rows: never change it."""
    root = tmp_path_factory.mktemp("pristine") / "lake"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "ROW_GROUP_ROWS", 16)
        write_world(root, world)
    return root


@pytest.fixture
def lake_copy(pristine: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(pristine, tmp_path / "lake"))
