"""What a host meets outside in its first minutes: package mirrors over https, and a closed port 80.

The host asks for `mirror.example`, whose certificate comes from an authority made for the run. What
it asks for is fetched from the archives that this machine's own apt uses, read when the run starts,
and kept in the cache of `image.py`. Indices are fetched once a run, so that what is kept stays
whole; packages never change under their names.

The sockets listen in the network namespace of the outside world while the process stays in this
machine's own: a socket belongs to the namespace in which it was made.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.server
import os
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.onhost.image import ImageError, cache, run

NAME = "mirror.example"
POCKETS = {"debian": "", "debian-security": "security"}
CLONE_NEWNET = 0x40000000
FETCH_SECONDS = 120
ANSWER_BYTES_MAX = 400_000_000


def upstream() -> dict[str, str]:
    """Addresses of the archives by the name that the host uses. Raises ImageError."""
    listed = run("apt-get", "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(SITE)")
    found: dict[str, str] = {}
    for line in listed.splitlines():
        origin, codename, site = (*line.split(), "", "", "")[:3]
        for name, pocket in POCKETS.items():
            if origin == "Debian" and codename.partition("-")[2] == pocket and site:
                found.setdefault(name, site.rstrip("/"))
    if found.keys() != POCKETS.keys():
        raise ImageError(f"apt knows the archives {sorted(found)}, {sorted(POCKETS)} are needed")
    return found


def in_namespace(path: Path, make: Callable[[], socket.socket]) -> socket.socket:
    """What `make` returns when called inside the network namespace at `path`."""
    made: list[socket.socket | Exception] = []
    libc = ctypes.CDLL(None, use_errno=True)

    def enter() -> None:  # setns moves one thread only, and this one ends here
        try:
            with path.open("rb") as handle:
                moved = libc.setns(handle.fileno(), CLONE_NEWNET) == 0
            error = OSError(ctypes.get_errno(), f"cannot enter {path}")
            made.append(make() if moved else error)
        except OSError as failed:  # handed to the caller below
            made.append(failed)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    (result,) = made
    if isinstance(result, Exception):
        raise result
    return result


def listener(address: str, port: int) -> socket.socket:
    """A listening TCP socket."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, port))
    made.listen(64)
    return made


def certificate(folder: Path) -> None:
    """`ca.pem`, and `server.pem` for NAME with its key in one file."""
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    run(
        *("openssl", "req", "-x509", *key, "-subj", "/CN=test authority"),
        *("-keyout", folder / "ca.key", "-out", folder / "ca.pem"),
    )
    run(
        *("openssl", "req", "-x509", *key, "-subj", f"/CN={NAME}", "-addext"),
        *(f"subjectAltName=DNS:{NAME}", "-addext", "basicConstraints=critical,CA:FALSE"),
        *("-CA", folder / "ca.pem", "-CAkey", folder / "ca.key"),
        *("-keyout", folder / "server.key", "-out", folder / "server.pem"),
    )


class Mirror:
    """Serves `https://mirror.example/debian` and `/debian-security`, and `/local` from a folder.

    `asked` holds the paths in order; `refused` the ones that could not be answered; `knocks` counts
    connections to port 80, where nobody answers.
    """

    def __init__(self, folder: Path, namespace: Path, address: str) -> None:
        self.asked: list[str] = []
        self.refused: list[str] = []
        self.knocks = 0
        self.folder = folder
        self.local = folder / "local"
        self._upstream = upstream()
        self._fresh: set[Path] = set()
        self._lock = threading.Lock()
        certificate(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem", folder / "server.key")
        plain = in_namespace(namespace, lambda: listener(address, 443))
        self._http = in_namespace(namespace, lambda: listener(address, 80))
        self._server = http.server.ThreadingHTTPServer(
            (address, 443), self._handler(), bind_and_activate=False
        )
        self._server.socket.close()
        self._server.socket = context.wrap_socket(
            plain, server_side=True, do_handshake_on_connect=False
        )
        self._server.daemon_threads = True
        self._threads = [
            threading.Thread(target=self._server.serve_forever, daemon=True),
            threading.Thread(target=self._count_knocks, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """No socket and no thread is left."""
        self._server.shutdown()
        self._server.server_close()
        with contextlib.suppress(OSError):
            self._http.shutdown(socket.SHUT_RDWR)
        self._http.close()
        for thread in self._threads:
            thread.join()

    def _count_knocks(self) -> None:
        while True:
            try:
                connection, _ = self._http.accept()
            except OSError:
                return
            self.knocks += 1
            connection.close()

    def _find(self, path: str) -> Path | None:
        """A file with what the host asked for, or None where the archive has none."""
        archive, _, rest = path.lstrip("/").partition("/")
        if ".." in rest.split("/"):
            return None
        if archive == "local":
            return self.local / rest if (self.local / rest).is_file() else None
        if archive not in self._upstream:
            return None
        kept = cache() / "mirror" / archive / rest
        with self._lock:  # one fetch at a time is enough for one host
            stale = rest.startswith("dists/") and "/by-hash/" not in rest
            if kept.is_file() and (not stale or kept in self._fresh):
                return kept
            try:
                address = f"{self._upstream[archive]}/{rest}"
                with urllib.request.urlopen(address, timeout=FETCH_SECONDS) as answer:
                    body = answer.read(ANSWER_BYTES_MAX)
            except urllib.error.HTTPError:
                return None
            kept.parent.mkdir(parents=True, exist_ok=True)
            beside = kept.with_name(f"{kept.name}.{os.getpid()}.new")
            beside.write_bytes(body)
            beside.rename(kept)
            self._fresh.add(kept)
        return kept

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        mirror = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                mirror.asked.append(self.path)
                try:
                    found = mirror._find(self.path)
                except OSError as error:
                    mirror.refused.append(f"{self.path}: {error}")
                    self.send_error(502)
                    return
                if found is None:
                    mirror.refused.append(self.path)
                    self.send_error(404)
                    return
                body = found.read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Nothing on the terminal; `asked` has it."""

        return Handler


@contextlib.contextmanager
def mirror(folder: Path, namespace: Path, address: str) -> Iterator[Mirror]:
    """A running Mirror."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Mirror(folder, namespace, address)
    try:
        yield made
    finally:
        made.close()


def trust(folder: Path, root: Path) -> None:
    """Below `root` the files by which a host finds NAME's certificate good."""
    bundle = root / "usr" / "local" / "share" / "ca-certificates" / "test.crt"
    bundle.parent.mkdir(parents=True, exist_ok=True)
    bundle.write_bytes((folder / "ca.pem").read_bytes())


def hosts_line(address: str) -> str:
    """The line of /etc/hosts that stands in for DNS."""
    return f"{address} {NAME}\n"
