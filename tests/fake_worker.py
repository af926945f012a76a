"""What sessions of workers ask of a worker of Dask, without one."""

from pathlib import Path
from types import SimpleNamespace

from distributed import Status


def fake_worker(name, folder: Path, threads: int = 1, address: str = "tcp://10.0.0.1:1", limit=None):
    """A worker with ``limit`` bytes of memory."""
    memory = SimpleNamespace(memory_limit=limit, memory_pause_fraction=0.8)
    return SimpleNamespace(
        name=name, state=SimpleNamespace(nthreads=threads), local_directory=folder, address=address, status=Status.running,
        memory_manager=memory, plugins={},
    )  # fmt: skip
