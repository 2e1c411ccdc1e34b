"""What `nix flake check` runs with a closure's own Python: all of it imports, from nowhere else.

Reads the environment variables MEMBERS (folders of python/) and FORBIDDEN (modules that must not be
there). Writes the number of imported modules to the given path.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import sys
from pathlib import Path

PACKAGES = {"cli": "tape", "lake": "kalshilake"}  # where folder and package differ in name


def main() -> None:
    """Import all; say what is wrong by ending with a message."""
    prefix, result = Path(sys.argv[1]), Path(sys.argv[2])
    if Path(sys.prefix) != prefix:
        sys.exit(f"this Python belongs to {sys.prefix}, not to {prefix}")
    found = [name for name in os.environ["FORBIDDEN"].split() if importlib.util.find_spec(name)]
    if found:
        sys.exit(f"the closure holds {', '.join(found)}")
    count = 0
    for member in os.environ["MEMBERS"].split():
        package = importlib.import_module(PACKAGES.get(member, member))
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
                count += 1
    foreign = [entry for entry in sys.path if not entry.startswith(("/nix/store/", str(prefix)))]
    if foreign:
        sys.exit(f"modules would also be found in {', '.join(foreign)}")
    result.write_text(f"{count}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
