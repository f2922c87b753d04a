"""A process with TensorFlow and MLflow loaded, from which the stages of one study are forked.

Loading them takes five seconds, and a small study has twenty stages. DVC starts and records the same commands; each
command leaves its work to a fork, passes signals on to it and ends with its exit code. A fork ends when its command or
the study ends. If the code has changed or the process has died, a command does the work itself.
"""

import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from medtransfer.core.processes import end_after, end_with_parent

ADDRESS = "MEDTRANSFER_WARM_PROCESS"
LOADED = "medtransfer.pipeline.preload"
NUMBER = 4  # bytes of a length or a process id


@contextmanager
def warm_process() -> Iterator[None]:
    """Run stages that start within the block in forks of one process."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        address = f"{folder}/socket"
        try:
            listener.bind(address)
        except OSError:  # the path is too long for a socket
            yield
            return
        listener.listen()
        server = subprocess.Popen(
            # UTF-8 from the start: in other locales, `main` restarts Python, which a fork cannot do.
            [sys.executable, "-X", "utf8", "-m", __name__, str(listener.fileno()), LOADED],
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches a fork only through its command
            preexec_fn=end_with_parent,
        )
        listener.close()  # or commands would wait for a process that has died
        os.environ[ADDRESS] = address
        try:
            yield
        finally:
            del os.environ[ADDRESS]
            server.terminate()
            server.wait()


def run_warm(arguments: Sequence[str]) -> int | None:
    """Run `medtransfer` with these arguments in a fork and return its exit code; None if there is no warm process."""
    address = os.environ.pop(ADDRESS, None)
    if not address:
        return None
    request = {"arguments": arguments, "folder": str(Path.cwd()), "environment": dict(os.environ)}
    message = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(address)
            socket.send_fds(connection, [len(message).to_bytes(NUMBER, "big")], [1, 2])
            connection.sendall(message)
            fork = int.from_bytes(_receive(connection, NUMBER), "big")
        except OSError:
            return None

        def pass_on(number: int, frame: Any) -> None:
            with suppress(ProcessLookupError):
                os.kill(fork, number)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, pass_on)
        answer = connection.recv(1)
        connection.recv(1)  # returns nothing, once the fork has ended
    if not answer:
        print(f"process {fork} was killed", file=sys.stderr)
    return answer[0] if answer else 1


def _receive(connection: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        part = connection.recv(count - len(found))
        if not part:
            raise ConnectionResetError
        found += part
    return found


def serve(listener: socket.socket, module: str) -> None:
    """Load a module, then fork for each request until the code changes."""
    loaded = _code()
    importlib.import_module(module)
    gc.freeze()  # a collection in a fork would copy every page
    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)  # by JAX, which starts no threads before its first use
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = listener.accept()
        if _code() != loaded:
            return
        if not os.fork():
            listener.close()
            _run(connection)
        connection.close()


def _code() -> dict[Path, int]:
    """Return when each file of this package was changed."""
    return {path: path.stat().st_mtime_ns for path in Path(__file__).parents[1].rglob("*.py")}


def _run(connection: socket.socket) -> None:
    """Run the command of a request in this fork, with the request's folder, environment and output."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, outputs, _, _ = socket.recv_fds(connection, NUMBER, 2)
    request = json.loads(_receive(connection, int.from_bytes(length, "big")))
    for number, output in enumerate(outputs, start=1):
        os.dup2(output, number)
        os.close(output)
    sys.stdout, sys.stderr = (os.fdopen(number, "w") for number in (1, 2))
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv[1:] = request["arguments"]
    connection.sendall(os.getpid().to_bytes(NUMBER, "big"))
    end_after(lambda: connection.recv(1))
    code = 1
    try:
        importlib.import_module("medtransfer.cli").main()
    except SystemExit as end:
        code = int(end.code or 0)
        raise
    finally:
        connection.sendall(bytes([code]))


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
