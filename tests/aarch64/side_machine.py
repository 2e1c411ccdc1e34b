"""One side: which processor, C library and Python this is, and whether a closure imports whole.

Asked `{"op": "facts"}` or `{"op": "imports", "packages": [...]}`; needs nothing but the standard
library.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import os
import pkgutil
import platform
import re
import struct
import sys
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

from tests.aarch64.answering import answer_all

AT_HWCAP = 16
HWCAP = {"atomics": 8, "sve": 22}  # bits of arm64's AT_HWCAP: large system extensions, vectors
LIBRARY = re.compile(r"\.so(\.\d+)*$")
# A second implementation that its maker wants another distribution for; without that, the first is
# used. Module -> what it lacks then.
OPTIONAL = {"zstandard._cffi": "_cffi_backend"}
CHECKS = "/trial/checks"  # this package; not the closure's


def facts() -> dict[str, Any]:
    """What the process sees of its machine."""
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.restype = ctypes.c_ulong
    capabilities = int(getauxval(ctypes.c_ulong(AT_HWCAP)))
    return {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "libc": " ".join(platform.libc_ver()),
        "page_bytes": os.sysconf("SC_PAGE_SIZE"),
        "byte_order": sys.byteorder,
        "long_bytes": struct.calcsize("l"),
        **{name: bool(capabilities >> bit & 1) for name, bit in HWCAP.items()},
    }


def dotted(file: str) -> str | None:
    """The module that a file of a wheel is; None for what is no module."""
    path = Path(file)
    if path.suffix == ".py":
        parts = path.with_suffix("").parts
        return parts[0] if len(parts) == 1 or parts[1:] == ("__init__",) else None
    for suffix in EXTENSION_SUFFIXES:
        if suffix != ".so" and path.name.endswith(suffix):
            return ".".join((*path.parts[:-1], path.name.removesuffix(suffix)))
    return None


def tries(distribution: importlib.metadata.Distribution) -> Iterator[tuple[str, str]]:
    """(module or library, what) of one distribution: its top modules, every native file."""
    for file in distribution.files or ():
        name = file.as_posix()
        module = dotted(name)
        if module is not None and module.replace(".", "_").isidentifier():
            yield module, "native" if file.suffix == ".so" else "module"
        elif LIBRARY.search(file.name):
            yield str(distribution.locate_file(file)), "library"


def imports(packages: list[str]) -> dict[str, Any]:
    """Import every distribution, load every native file, import every module of our own."""
    failures: list[str] = []
    left_out: list[str] = []
    counts = {"module": 0, "native": 0, "library": 0, "own": 0}
    versions: dict[str, str] = {}

    def attempt(owner: str, name: str, what: str) -> None:
        try:
            if what == "library":
                ctypes.CDLL(name)
            else:
                importlib.import_module(name)
            counts[what] += 1
        except ModuleNotFoundError as error:
            known = error.name is not None and OPTIONAL.get(name) == error.name
            (left_out if known else failures).append(f"{owner}: {name}: {error}")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
            failures.append(f"{owner}: {Path(name).name}: {type(error).__name__}: {error}")

    places = [entry for entry in sys.path if entry.startswith("/trial/") and entry != CHECKS]
    for distribution in importlib.metadata.distributions(path=places):
        name = distribution.name
        versions.setdefault(name, distribution.version)
        for target, what in tries(distribution):
            attempt(name, target, what)
    for package in packages:
        found = importlib.import_module(package)
        for module in pkgutil.walk_packages(found.__path__, f"{package}."):
            if not module.name.endswith("__main__"):
                attempt(package, module.name, "own")
    return {"versions": versions, "failures": failures, "left_out": left_out, **counts}


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """One question."""
    return facts() if asked["op"] == "facts" else imports(asked["packages"])


if __name__ == "__main__":
    answer_all(answer)
