"""Every module has its test file: tests/unit/<package>/test_<module>.py."""

from __future__ import annotations

from pathlib import Path

from tests.rules.tree import ROOT, modules, plant


def breaches(root: Path) -> list[str]:
    found: list[str] = []
    for module in modules(root):
        if not module.name:  # a package's __init__: tested through its modules
            continue
        *above, name = module.name.split(".")
        if name == "__main__":  # how a package is run: tested with the package
            name = above[-1] if above else "main"
        expected = root / "tests" / "unit" / module.package / f"test_{name}.py"
        if not expected.is_file():
            found.append(f"{module.where()} has no {expected.relative_to(root)}")
        elif "def test_" not in expected.read_text(encoding="utf-8"):
            found.append(f"{expected.relative_to(root)} holds no test")
    return found


def test_every_module_has_its_test_file() -> None:
    assert breaches(ROOT) == []


def test_a_planted_module_without_tests_is_found(tmp_path: Path) -> None:
    plant(tmp_path, "gatherer", "planted", "X = 1")
    assert breaches(tmp_path) == ["gatherer/planted.py has no tests/unit/gatherer/test_planted.py"]
    test_file = tmp_path / "tests" / "unit" / "gatherer" / "test_planted.py"
    test_file.parent.mkdir(parents=True)
    test_file.write_text("# later\n")
    assert breaches(tmp_path) == ["tests/unit/gatherer/test_planted.py holds no test"]
    test_file.write_text("def test_x():\n    assert 1\n")
    assert breaches(tmp_path) == []
