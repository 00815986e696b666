"""Real servers on localhost that fail when a test tells them to."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from werkzeug.serving import WSGIRequestHandler, make_server

SLOW_PIECES = 20
SLOW_PAUSE = 0.06
STALL = 30


class Faulty:
    """A WSGI application around another one; the next answers for a path end as ``faults`` says.

    Faults: ``503`` answers so; ``cut`` closes the connection in the middle; ``stall`` sends half, and the rest
    when no client waits for it any more; ``silence`` so with all of it; ``slow`` sends small pieces with pauses;
    ``403`` answers so.
    """

    def __init__(self, application: Callable) -> None:
        self._application = application
        self.faults: dict[str, list[str]] = {}
        self.requests: list[str] = []
        self.stopped = threading.Event()

    def __call__(self, environ: dict, start_response: Callable) -> Iterator[bytes]:
        name = environ["PATH_INFO"].rsplit("/", 1)[-1]
        faults = self.faults.get(name, []) if environ["REQUEST_METHOD"] == "GET" else []
        fault = faults.pop(0) if faults else ""
        self.requests.append(f"{environ['REQUEST_METHOD']} {name}")
        if fault in ("503", "403"):
            start_response(f"{fault} told to", [("Content-Length", "0")])
            return iter([b""])
        if fault == "silence":
            self.stopped.wait(STALL)
        body = b"".join(self._application(environ, start_response))
        return self._deliver(body, fault)

    def _deliver(self, body: bytes, fault: str) -> Iterator[bytes]:
        if fault == "slow":
            for piece in range(SLOW_PIECES):
                yield body[piece * len(body) // SLOW_PIECES : (piece + 1) * len(body) // SLOW_PIECES]
                time.sleep(SLOW_PAUSE)
            return
        yield body[: len(body) // 2]
        if fault == "stall":
            self.stopped.wait(STALL)
        if fault == "cut":
            raise ConnectionAbortedError("told to")
        yield body[len(body) // 2 :]


class _Quiet(WSGIRequestHandler):
    def log(self, *_: object) -> None:
        pass


@contextmanager
def serving(application: Callable, handler: type[WSGIRequestHandler] = _Quiet) -> Iterator[tuple[str, Faulty]]:
    """Serve an application on a free port; gives its URL and its faults."""
    faulty = Faulty(application)
    server = make_server("127.0.0.1", 0, faulty, threaded=True, request_handler=handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", faulty
    finally:
        faulty.stopped.set()
        server.shutdown()


def files_of(folder: Path) -> Callable:
    """An application that serves the files of a folder."""

    def application(environ: dict, start_response: Callable) -> list[bytes]:
        path = folder / environ["PATH_INFO"].lstrip("/")
        if not path.is_file():
            start_response("404 NOT FOUND", [("Content-Length", "0")])
            return [b""]
        data = path.read_bytes()
        start_response("200 OK", [("Content-Length", str(len(data)))])
        return [data]

    return application
