"""Kernels for notebooks, forked from one process that has imported what notebooks use: each is a new one, but starts at once.

Run as a program: with a socket's path it serves, with a connection file, too, it is the kernel as Jupyter sees it.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "forked"


@contextmanager
def kernels(folder: Path) -> Iterator[str]:
    """Serve kernels as long as the block lasts; yield the name of their kind, having noted it in ``folder`` for Jupyter."""
    address, told = folder / "socket", folder / "stderr"
    spec = folder / "kernels" / NAME / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = [sys.executable, "-S", __file__, str(address), "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": NAME, "language": "python"}))
    with (
        told.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, __file__, str(address)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
        ) as server,
    ):  # which ends when its standard input does, and kernels end with it
        assert server.stdin and server.stdout and server.stdout.readline() == b"ready\n", told.read_text()
        assert "warning" not in told.read_text().lower(), told.read_text()
        before = os.environ.get("JUPYTER_PATH")
        os.environ["JUPYTER_PATH"] = str(folder)
        try:
            yield NAME
        finally:
            if before is None:
                del os.environ["JUPYTER_PATH"]
            else:
                os.environ["JUPYTER_PATH"] = before
            server.stdin.close()


def _serve(address: str) -> None:
    import ipykernel.ipkernel
    import ipykernel.kernelapp  # noqa: F401

    import refmotion_nb as rm

    for name in rm.__all__:
        getattr(rm, name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for kernels
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as ready:
        listener.bind(address)
        listener.listen()
        for one in (listener, sys.stdin):
            ready.register(one, selectors.EVENT_READ)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while all(key.fileobj is listener for key, _ in ready.select()):
            client, _ = listener.accept()
            with client, client.makefile() as lines:
                wanted = json.loads(lines.readline())
                if os.fork() == 0:
                    _become_kernel(**wanted)


def _become_kernel(connection_file: str, folder: str, environment: dict[str, str]) -> None:
    from ipykernel.kernelapp import IPKernelApp

    parent = {"JPY_PARENT_PID": str(os.getppid())}  # without whom it ends
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update({**environment, **parent})
    os.chdir(folder)
    sys.path[0], sys.argv = "", ["ipykernel_launcher", "-f", connection_file]
    IPKernelApp.launch_instance()
    os._exit(0)


def _stand_for_kernel(address: str, connection_file: str) -> None:
    """Ask for a kernel, and end when it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # sent to idle kernels before they are told to end
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        wanted = {"connection_file": connection_file, "folder": os.getcwd(), "environment": dict(os.environ)}
        server.sendall(json.dumps(wanted).encode() + b"\n")
        server.recv(1)  # nothing comes, but the end


if __name__ == "__main__":
    _serve(*sys.argv[1:]) if len(sys.argv) == 2 else _stand_for_kernel(*sys.argv[1:])
