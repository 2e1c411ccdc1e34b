"""Try what a sandbox forbids, and print a JSON object: "ok" or the error of each attempt.

Runs inside a unit of a test host, with the host's own Python. Harmless where it is allowed: what is
written is scratch, and what is named is the test host's.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path

CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x00020000
CONNECT_S = 3.0


def write(path: str) -> None:
    """Make a file and remove it."""
    place = Path(path) / "onhost-probe"
    place.write_text("x")
    place.unlink()


def executable_memory() -> None:
    """Memory that can be written and executed."""
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def open_socket(family: int, kind: int, protocol: int = 0) -> None:
    """A socket, closed again."""
    socket.socket(family, kind, protocol).close()


def namespace(flag: int) -> None:
    """A namespace, in a child: it must not change this process."""
    child = os.fork()
    if child == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        os._exit(0 if libc.unshare(flag) == 0 else ctypes.get_errno())
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(code, os.strerror(code))


def set_user_id_file() -> None:
    """A file with the set-user-id bit in the unit's own scratch."""
    place = Path("/tmp/onhost-suid")
    place.write_text("x")
    try:
        place.chmod(0o4755)
    finally:
        place.unlink()


def device() -> None:
    """A block device node."""
    os.mknod("/tmp/onhost-device", stat.S_IFBLK | 0o600, os.makedev(7, 0))
    Path("/tmp/onhost-device").unlink()


def host_name() -> None:
    """The name that the host has already."""
    socket.sethostname(socket.gethostname())


def kernel_setting() -> None:
    """A setting of the host's own network, set to what it is."""
    place = Path("/proc/sys/net/ipv4/ip_forward")
    place.write_text(place.read_text())


def another_process() -> None:
    """Process 1's entry, which shows every process there is."""
    Path("/proc/1/status").read_text()


def home() -> None:
    """What lies in the administrator's home."""
    list(Path("~root").expanduser().iterdir())


def become_root() -> None:
    """The administrator's account, in a child."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(OSError):
            os.setresuid(0, 0, 0)
            os._exit(0)
        os._exit(1)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise OSError(errno.EPERM, "refused")


def core_file() -> None:
    """May a crash leave the memory, keys in it, on the disk?"""
    import resource

    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        raise OSError(errno.EPERM, "limit")


def connect(place: str) -> None:
    """A TCP connection to ADDRESS:PORT."""
    address, _, port = place.rpartition(":")
    socket.create_connection((address, int(port)), CONNECT_S).close()


def attempts(address: str) -> dict[str, Callable[[], None]]:
    """Everything that is tried, by name. `address`: a listener on the internet."""
    return {
        "write /etc": lambda: write("/etc"),
        "write /usr": lambda: write("/usr"),
        "write /nix/store": lambda: write("/nix/store"),
        "write /var/lib": lambda: write("/var/lib"),
        "write /run": lambda: write("/run"),
        "rwx memory": executable_memory,
        "raw socket": lambda: open_socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        "packet socket": lambda: open_socket(socket.AF_PACKET, socket.SOCK_RAW),
        "netlink socket": lambda: open_socket(socket.AF_NETLINK, socket.SOCK_RAW),
        "IPv6 socket": lambda: open_socket(socket.AF_INET6, socket.SOCK_STREAM),
        "user namespace": lambda: namespace(CLONE_NEWUSER),
        "mount namespace": lambda: namespace(CLONE_NEWNS),
        "set-user-id file": set_user_id_file,
        "device node": device,
        "host name": host_name,
        "kernel setting": kernel_setting,
        "another process": another_process,
        "home": home,
        "become root": become_root,
        "core file": core_file,
        "connect out": lambda: connect(address),
    }


def main() -> int:
    """Try everything; the exit code."""
    said = {}
    for name, attempt in attempts(sys.argv[1]).items():
        try:
            attempt()
            said[name] = "ok"
        except TimeoutError:
            said[name] = "timeout"
        except OSError as error:
            said[name] = errno.errorcode.get(error.errno or 0, str(error))
    print(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
