"""S3 on the loopback interface, native: prints its port and serves until it is ended."""

from __future__ import annotations

import logging
import threading
import warnings

if __name__ == "__main__":
    with warnings.catch_warnings():
        # It asks for everything that other services than S3 would need.
        warnings.simplefilter("ignore")
        from moto.server import ThreadedMotoServer
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    print(server.get_host_and_port()[1], flush=True)
    threading.Event().wait()
