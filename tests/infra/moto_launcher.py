"""A moto server on the loopback interface for the real CLI.

Prints its port, stops at end of input.
"""

from __future__ import annotations

import sys

import moto_account
from moto.server import ThreadedMotoServer


def main() -> int:
    """Serves until standard input closes. Returns the exit code."""
    moto_account.narrow_window_overlap()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    print(port, flush=True)
    sys.stdin.read()
    server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
